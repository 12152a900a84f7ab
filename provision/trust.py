"""Files by which programs other than deployctl trust a deployment's own certificate."""

from __future__ import annotations

from pathlib import Path

from provision.backend import certificate_file
from runtime.mailbox import write_atomic


def pin_file(name: str, certificate: str) -> Path:
    """A PEM file with the endpoint's certificate alone: curl's --cacert, NODE_EXTRA_CA_CERTS. Raises OSError."""
    path = certificate_file(name)
    if not path.is_file() or path.read_text(encoding="utf-8") != certificate:
        write_atomic(path, certificate.encode())
    return path


def bundle_file(name: str, certificate: str) -> Path:
    """The usual authorities and the endpoint's certificate: SSL_CERT_FILE counts for a whole shell, whose other
    programs must still reach the rest of the world. Raises OSError."""
    import certifi

    path = certificate_file(name).with_suffix(".bundle.pem")
    text = Path(certifi.where()).read_text(encoding="utf-8").rstrip() + "\n" + certificate
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode())
    return path


def forget_files(name: str) -> None:
    """Deletes both files, if they are there."""
    for path in (certificate_file(name), certificate_file(name).with_suffix(".bundle.pem")):
        path.unlink(missing_ok=True)
