"""The providers that need no cloud, for the test engine: random, tls and command do here what they do for real."""

from __future__ import annotations

import base64
import os
import secrets
import string
import subprocess
import uuid

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from tests.lab.pulumi_model import Created, OutsideTheLab, Provider
from tests.lab.pulumi_wire import Properties

HERE = "tests/lab/small_providers.py"
RSA_EXPONENT = 65537
ALPHABET = string.ascii_letters + string.digits


def small_providers() -> dict[str, Provider]:
    return {"random": RandomProvider(), "tls": TlsProvider(), "command": CommandProvider()}


class _Unchanging:
    """A provider whose resources live in the state only: any change makes a new one, and nothing is left behind."""

    inputs: frozenset[str]

    def replaces(self, token: str) -> frozenset[str]:
        return self.inputs

    def update(self, token: str, id: str, inputs: Properties, outputs: Properties, settings: Properties) -> Properties:
        raise OutsideTheLab(f"an update of {token}: each change of {sorted(self.inputs)} replaces it", HERE)

    def delete(self, token: str, id: str, outputs: Properties, settings: Properties) -> None:
        return None

    def invoke(self, token: str, args: Properties, settings: Properties) -> Properties:
        raise OutsideTheLab(f"the data source {token}", HERE)


class RandomProvider(_Unchanging):
    inputs = frozenset({"byteLength", "keepers", "length", "special", "prefix"})

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        if token == "random:index/randomPassword:RandomPassword":
            return Created("none", {"result": "".join(secrets.choice(ALPHABET) for _ in range(inputs["length"]))})
        if token == "random:index/randomBytes:RandomBytes":
            data = secrets.token_bytes(inputs["length"])
            return Created("none", {"base64": base64.b64encode(data).decode(), "hex": data.hex()})
        if token == "random:index/randomId:RandomId":
            data = secrets.token_bytes(inputs["byteLength"])
            return Created(base64.urlsafe_b64encode(data).decode().rstrip("="), {"hex": data.hex()})
        raise OutsideTheLab(token, HERE)


class TlsProvider(_Unchanging):
    inputs = frozenset({"algorithm", "rsaBits"})

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        if token != "tls:index/privateKey:PrivateKey" or inputs["algorithm"] not in ("ED25519", "RSA"):
            raise OutsideTheLab(f"{token} with {inputs}", HERE)
        key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey = ed25519.Ed25519PrivateKey.generate()
        if inputs["algorithm"] == "RSA":
            key = rsa.generate_private_key(RSA_EXPONENT, inputs["rsaBits"])
        encoding, formats = serialization.Encoding, serialization.PrivateFormat
        public = key.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        private = key.private_bytes(encoding.PEM, formats.OpenSSH, serialization.NoEncryption()).decode()
        return Created(uuid.uuid4().hex, {"publicKeyOpenssh": public + "\n", "privateKeyOpenssh": private})


class CommandProvider:
    """`command.local.Command` runs its `create`; a change runs `update`, or `create` again; new triggers replace."""

    def replaces(self, token: str) -> frozenset[str]:
        return frozenset({"triggers"})

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        return Created(uuid.uuid4().hex, _run(inputs.get("create"), inputs, {}))

    def update(self, token: str, id: str, inputs: Properties, outputs: Properties, settings: Properties) -> Properties:
        previous = {f"PULUMI_COMMAND_{name.upper()}": outputs.get(name, "") for name in ("stdout", "stderr")}
        return _run(inputs.get("update") or inputs.get("create"), inputs, previous)

    def delete(self, token: str, id: str, outputs: Properties, settings: Properties) -> None:
        _run(outputs.get("delete"), outputs, {})

    def invoke(self, token: str, args: Properties, settings: Properties) -> Properties:
        raise OutsideTheLab(f"the data source {token}", HERE)


def _run(command: str | None, inputs: Properties, more: dict[str, str]) -> Properties:
    if command is None:
        return {"stdout": "", "stderr": ""}
    done = subprocess.run(
        [*inputs.get("interpreter", ["/bin/sh", "-c"]), command],
        cwd=inputs.get("dir"),
        env={**os.environ, **more, **inputs.get("environment", {})},
        input=inputs.get("stdin", ""),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()}")
    return {"stdout": done.stdout.rstrip("\n"), "stderr": done.stderr.rstrip("\n")}
