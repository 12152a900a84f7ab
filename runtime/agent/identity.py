"""What a client pins: the certificate that this machine shows, and its SSH host key.

tls/certificate.pem   `pinned`: made here, for one instance and its names; `own`: what the user has put into the mailbox
tls/key.pem           readable by the server alone; it never leaves the machine when it was made here
tls/made_for.json     which instance and which names; a new instance, or one with a new address, makes a new pair
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.agent.files import Access
from runtime.agent.status import PhaseError
from runtime.deployment import Struct
from runtime.mailbox import TLS_SECRET

# The longest that Apple's platforms accept from an authority that the user has added (support.apple.com/103769).
VALID_FOR = timedelta(days=825)
RENEW_BEFORE = timedelta(days=30)
BACKDATED = timedelta(days=1)  # for clients whose clock is behind
SSH_HOST_KEY = Path("/etc/ssh/ssh_host_ed25519_key.pub")
COMMON_NAME_MOST = 64  # X.520's ub-common-name
OWN_HINT = "set tls_cert and tls_key to a matching PEM pair, and run `deployctl up` again"


@dataclass(frozen=True, slots=True)
class Pair:
    """Certificate (with its chain, the machine's own first) and private key, both PEM."""

    certificate: bytes
    key: bytes


class MadeFor(Struct, frozen=True):
    instance_id: str
    names: tuple[str, ...]


class OwnPair(Struct, frozen=True):
    """`secrets/tls.json`."""

    certificate: str
    key: str


class Keeper:
    """The folder `tls/`. `access`: for the server's user alone."""

    def __init__(self, folder: Path, access: Access) -> None:
        self._folder = folder
        self._access = access

    @property
    def certificate_file(self) -> Path:
        return self._folder / "certificate.pem"

    def certificate(self) -> str | None:
        try:
            return self.certificate_file.read_text()
        except FileNotFoundError:
            return None

    def leaf(self) -> bytes | None:
        """The machine's own certificate in DER, as a server shows it."""
        text = self.certificate()
        return None if text is None else ssl.PEM_cert_to_DER_cert(text[: text.index(_END) + len(_END)] + "\n")

    def ensure_pinned(self, instance_id: str, names: tuple[str, ...], now: datetime) -> bool:
        """Makes a pair where none fits. True when the certificate has changed."""
        wanted = MadeFor(instance_id=instance_id, names=names)
        if self._made_for() == wanted and self._days_left(now) > RENEW_BEFORE:
            return False
        self._write(make_pair(names, now))
        self._access.write(self._folder / "made_for.json", msgspec.json.encode(wanted))
        return True

    def ensure_own(self, secret: bytes | None, now: datetime) -> bool:
        """Takes the user's pair. True when the certificate has changed. Raises PhaseError for one that cannot serve."""
        pair = read_own(secret, now)
        if self.certificate() == pair.certificate.decode() and (self._folder / "key.pem").exists():
            return False
        (self._folder / "made_for.json").unlink(missing_ok=True)
        self._write(pair)
        return True

    def _days_left(self, now: datetime) -> timedelta:
        text = self.certificate()
        if text is None or not (self._folder / "key.pem").exists():
            return timedelta(0)
        return x509.load_pem_x509_certificate(text.encode()).not_valid_after_utc - now

    def _made_for(self) -> MadeFor | None:
        try:
            return msgspec.json.decode((self._folder / "made_for.json").read_bytes(), type=MadeFor)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write(self, pair: Pair) -> None:
        """Cut off between the two, they do not match: `made_for.json` goes first, so that they are made again."""
        (self._folder / "made_for.json").unlink(missing_ok=True)
        self.certificate_file.unlink(missing_ok=True)
        self._access.write(self._folder / "key.pem", pair.key)
        self._access.write(self.certificate_file, pair.certificate)


_END = "-----END CERTIFICATE-----"


def make_pair(names: tuple[str, ...], now: datetime) -> Pair:
    """A P-256 key and a certificate for `names` (addresses and host names, at least one) that clients pin: it signs
    itself, and no other. Strict clients (RFC 5280) want the key identifiers."""
    key = ec.generate_private_key(ec.SECP256R1())
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, names[0][:COMMON_NAME_MOST])
    subject = x509.Name([common_name])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now - BACKDATED + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(_SIGNS_HANDSHAKES, True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(identifier, False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM), private)


def read_own(secret: bytes | None, now: datetime) -> Pair:
    """The pair of `secrets/tls.json`. Raises PhaseError unless the key belongs to the first certificate, which is valid
    now."""
    if secret is None:
        raise PhaseError(f"tls is own, but the mailbox has no {TLS_SECRET}", OWN_HINT)
    try:
        found = msgspec.json.decode(secret, type=OwnPair)
        chain = x509.load_pem_x509_certificates(found.certificate.encode())
        key = load_pem_private_key(found.key.encode(), password=None)
    except (msgspec.DecodeError, ValueError, TypeError) as error:  # TypeError: the key has a password
        raise PhaseError(f"{TLS_SECRET}: {error}", OWN_HINT) from error
    leaf = chain[0]
    if _public(leaf.public_key()) != _public_of(key):
        raise PhaseError("tls_key does not belong to the first certificate of tls_cert", OWN_HINT)
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise PhaseError(
            f"tls_cert is valid from {leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}, "
            f"today is {now:%Y-%m-%d}",
            "renew the certificate, and run `deployctl up` again",
        )
    return Pair(found.certificate.encode(), found.key.encode())


def read_ssh_host_key(path: Path = SSH_HOST_KEY) -> str | None:
    """`ssh-ed25519 AAAA…` without the comment; None where no SSH server has made one."""
    try:
        return " ".join(path.read_text().split()[:2]) or None
    except FileNotFoundError:
        return None


def utc_now() -> datetime:
    return datetime.now(UTC)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _public(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_of(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


_SIGNS_HANDSHAKES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
