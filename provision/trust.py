"""Files by which programs other than deployctl trust a deployment: its certificate, its SSH host key, and the private
key that it knows. All lie below one folder of this user, mode 0700, and `down` deletes them."""

from __future__ import annotations

from pathlib import Path

from provision.backend import certificate_file, ssh_folder
from runtime.mailbox import write_atomic


def pin_file(name: str, certificate: str) -> Path:
    """A PEM file with the endpoint's certificate alone: curl's --cacert, NODE_EXTRA_CA_CERTS. Raises OSError."""
    return _kept(certificate_file(name), certificate)


def bundle_file(name: str, certificate: str) -> Path:
    """The usual authorities and the endpoint's certificate: SSL_CERT_FILE counts for a whole shell, whose other
    programs must still reach the rest of the world. Raises OSError."""
    import certifi

    text = Path(certifi.where()).read_text(encoding="utf-8").rstrip() + "\n" + certificate
    return _kept(certificate_file(name).with_suffix(".bundle.pem"), text)


def ssh_key_file(name: str, private_key: str) -> Path:
    """The deployment's own private key in a file that only this user may read. Raises OSError."""
    path = _kept(ssh_folder(name) / "key", private_key.rstrip() + "\n")
    path.chmod(0o600)
    return path


def known_hosts_file(name: str, line: str) -> Path:
    """The one host key that the deployment's machine may show. Raises OSError."""
    return _kept(ssh_folder(name) / "known_hosts", line)


def forget_files(name: str) -> None:
    """Deletes all of them, if they are there."""
    folder = ssh_folder(name)
    pem = certificate_file(name)
    for path in (pem, pem.with_suffix(".bundle.pem"), folder / "key", folder / "known_hosts"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _kept(path: Path, text: str) -> Path:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode())
    return path
