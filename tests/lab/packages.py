"""What a guest without internet installs: wheels fetched once per content of the requirements, served as an index.

$XDG_CACHE_HOME/deployctl/lab/wheels/<Python>-<hash>/    what pip chooses for that Python
"""

from __future__ import annotations

import hashlib
import html
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from provision.wheel import Wheel, write_wheel
from tests.lab.network import OPERATOR, Holder, serve_http
from tests.lab.rootfs import build_once, cache

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("server", "s3", "oss", "modelscope", "runtime")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # for who has torch from there
OWN = re.compile(r"deployctl\[(.+)\]")
FILE_NAME = re.compile(r"(?P<name>.+?)-(?P<version>[^-]+)(-[^-]+){3}\.whl")


def requirements(extras: Sequence[str]) -> tuple[str, ...]:
    """What pyproject.toml asks for with `extras`, own extras opened."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def opened(lines: Sequence[str]) -> Iterator[str]:
        for line in lines:
            if (own := OWN.fullmatch(line)) is None:
                yield line
            else:
                for extra in own[1].split(","):
                    yield from opened(project["optional-dependencies"][extra])

    every = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return tuple(dict.fromkeys(line for lines in every for line in opened(lines)))


def wheelhouse(python: str, *, torch: str | None = None) -> Path:
    """Wheels for everything that a machine installs on `python` ("3.11"), torch in exactly the version `torch`. None:
    without it."""
    asked = sorted(line for line in requirements(EXTRAS) if not line.startswith("torch"))
    asked += [f"torch=={torch}"] if torch else []
    digest = hashlib.sha256("\n".join((python, *asked)).encode()).hexdigest()[:16]
    return build_once(cache() / "wheels" / f"{python}-{digest}", lambda folder: _download(python, asked, folder))


def _download(python: str, asked: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    if python != f"{sys.version_info.major}.{sys.version_info.minor}":
        command += ["--python-version", python]
    command += ["pip", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for torch" in done.stderr:
        done = subprocess.run([*command, "--extra-index-url", CPU_INDEX], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip download for Python {python} ended with {done.returncode}:\n{done.stderr[-4000:]}")


def stand_in_torch(folder: Path) -> Path:
    """A wheel that pip takes for torch: the phases look at versions only, and a scripted engine needs no tensors."""
    info = "torch-2.13.0.dist-info"
    files = {
        "torch/__init__.py": b'"""Stands in for torch in the lab."""\n',
        "torch/version.py": b"cuda: str = '13.0'\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / "torch-2.13.0-py3-none-any.whl"
    write_wheel(path, files, info)
    return path


def offered_wheels(folder: Path, python: str, *, torch: str | None) -> list[Path]:
    """Folders for a guest's index. `torch`: the version of the real one; None: a stand-in, made in `folder`."""
    folder.mkdir()
    if torch is not None:
        return [wheelhouse(python, torch=torch)]
    stand_in_torch(folder)
    return [wheelhouse(python), folder]


def with_replaced(wheel: Wheel, files: dict[str, bytes], folder: Path) -> Wheel:
    """The wheel with other content in some of its files, as a release of its own."""
    with zipfile.ZipFile(wheel.path) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}
    assert files.keys() <= found.keys(), f"the wheel has no {files.keys() - found.keys()}"
    info = next(name.split("/")[0] for name in found if name.endswith(".dist-info/METADATA"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / wheel.file_name
    write_wheel(path, found | files, info)
    return Wheel(path, hashlib.sha256(path.read_bytes()).hexdigest())


@dataclass(slots=True)
class Index:
    """A running package index (PEP 503). `fetched`: file names in the order of their downloads."""

    port: int
    fetched: list[str] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whoever asks meanwhile waits for the end of this."""
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()

    @property
    def host(self) -> str:
        return f"http://{OPERATOR}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.host}/simple"


@contextmanager
def serve_index(
    folders: Sequence[Path], operator: Holder, beside: Mapping[str, bytes] | None = None
) -> Iterator[Index]:
    """Serves the wheels of several folders, in the operator's network. `beside`: other files of the host, by path."""
    wheels = {path.name: path for folder in folders for path in folder.glob("*.whl")}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wheels.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            index.open.wait()
            name = unquote(self.path).strip("/").rpartition("/")[2]
            if self.path.startswith("/files/") and name in wheels:
                index.fetched.append(name)
                return self._send(200, "application/octet-stream", wheels[name].read_bytes())
            if beside and self.path in beside:
                return self._send(200, "application/octet-stream", beside[self.path])
            found = [file for file in wheels if normal(FILE_NAME.sub(r"\g<name>", file)) == name]
            links = "".join(f'<a href="/files/{html.escape(f)}#sha256={digests[f]}">{f}</a>\n' for f in found)
            return self._send(200 if found else 404, "text/html", links.encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """`fetched` is the log."""

    with serve_http(Handler, OPERATOR, 0, operator) as port:
        index = Index(port)
        index.open.set()
        yield index


def normal(name: str) -> str:
    """A distribution's name as an index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
