"""The wheel that a machine installs: built from a checkout, or rebuilt from what is installed here, or the user's own.

The same content gives the same bytes, so that an unchanged deployment keeps its release.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path, PurePosixPath

from provision.errors import MissingPartError
from provision.spec import Problem, SpecError
from provision.state import cache_root

NAME = "deployctl"
PACKAGES = ("provision", "runtime", "stacks", "templates")  # as [tool.hatch.build.targets.wheel] of pyproject.toml
BESIDE = ("pyproject.toml", "README.md", "LICENSE")
ENTRY = "runtime/agent/main.py"  # without it a machine cannot start
EPOCH = "1580601600"  # 2020-02-02, hatchling's own date for reproducible builds
ZIP_DATE = (2020, 2, 2, 0, 0, 0)
NOT_PACKAGED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # what an installer adds to .dist-info
_FILE_NAME = re.compile(r"deployctl-(?P<version>[^-]+)-py3-none-any\.whl")


@dataclass(frozen=True, slots=True)
class Wheel:
    """`sha256`: hex digest of the file."""

    path: Path
    sha256: str

    @property
    def file_name(self) -> str:
        return self.path.name


def runtime_wheel(given: str | None = None) -> Wheel:
    """The wheel for a machine. `given`: `DeploymentSpec.runtime_wheel`.

    Raises SpecError when `given` is no wheel of this project, and MissingPartError when none can be made.
    """
    if given is not None:
        return _checked(Path(given).expanduser())
    checkout = find_checkout()
    return build_from_checkout(checkout) if checkout is not None else rebuild_installed()


def find_checkout() -> Path | None:
    """The repository that this module runs from, if it is one."""
    root = Path(__file__).resolve().parents[1]
    try:
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    return root if f'name = "{NAME}"' in text else None


def build_from_checkout(root: Path) -> Wheel:
    """Built once per content, in a fifth of a second, without a network. Raises MissingPartError."""
    folder = _cache() / _content_hash(_sources(root))
    if found := _only_wheel(folder):
        return found
    try:
        from hatchling.builders.wheel import WheelBuilder
    except ImportError:
        raise MissingPartError(
            "the wheel for the machine cannot be built",
            why="deployctl runs from a checkout, and hatchling is not installed",
            next_command="pip install 'hatchling>=1.27'",
        ) from None
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch, _fixed_date():
        (built,) = WheelBuilder(str(root)).build(directory=scratch, versions=["standard"])
        return _keep(Path(built), folder)


def rebuild_installed() -> Wheel:
    """From the files that RECORD lists: an installer unpacks a wheel and keeps nothing of the archive.

    Raises MissingPartError.
    """
    try:
        installed = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        raise _not_rebuilt("deployctl is neither installed nor run from a checkout") from None
    files: dict[str, Path] = {}
    for file in installed.files or ():
        name = PurePosixPath(file)
        in_info = name.parts[0].endswith(".dist-info")
        if (name.parts[0] in PACKAGES and name.suffix != ".pyc") or (in_info and name.name not in NOT_PACKAGED):
            files[str(name)] = Path(str(file.locate()))
    if ENTRY not in files:
        raise _not_rebuilt(f"the installed distribution does not list {ENTRY}")
    info = next(name.split("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    folder = _cache() / _content_hash(files.items())
    if found := _only_wheel(folder):
        return found
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        path = Path(scratch) / f"{NAME}-{installed.version}-py3-none-any.whl"
        write_wheel(path, {name: file.read_bytes() for name, file in files.items()}, info)
        return _keep(path, folder)


def write_wheel(path: Path, files: dict[str, bytes], info: str) -> None:
    """Writes a wheel whose bytes depend on `files` (names in the archive) alone. `info`: its .dist-info folder."""
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_urlsafe(data)},{len(data)}\n" for name, data in sorted(files.items())]
    content = {**files, record: "".join([*lines, f"{record},,\n"]).encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content, key=lambda name: (name == record, name)):
            entry = zipfile.ZipInfo(name, ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content[name])


def _checked(path: Path) -> Wheel:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise _refused(f"{path.name!r} is not named like a wheel of {NAME}", f"{NAME}-0.1.0-py3-none-any.whl")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            about = next((name for name in names if name.endswith(".dist-info/METADATA")), None)
            headers = HeaderParser().parsestr(archive.read(about).decode() if about else "")
            damaged = archive.testzip()
    except FileNotFoundError:
        raise _refused(f"{path} does not exist") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise _refused(f"{path} cannot be read as a wheel ({error})") from None
    if damaged is not None:
        raise _refused(f"{path} is damaged at {damaged}")
    if headers["Name"] != NAME or headers["Version"] != match["version"]:
        raise _refused(f"{path} holds {headers['Name']} {headers['Version']}, which its file name does not say")
    if ENTRY not in names:
        raise _refused(f"{path} has no {ENTRY}")
    return _wheel(path.resolve())


def _refused(reason: str, nearest: str | None = None) -> SpecError:
    return SpecError([Problem("runtime_wheel", reason, nearest)])


def _not_rebuilt(why: str) -> MissingPartError:
    return MissingPartError(
        "the wheel for the machine cannot be made", why=why, next_command="pip install --force-reinstall deployctl"
    )


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    """A superset of what hatchling packages; what it leaves out by .gitignore only costs a needless build."""
    for name in BESIDE:
        if (root / name).is_file():
            yield name, root / name
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield path.relative_to(root).as_posix(), path


def _content_hash(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    folder = cache_root() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _only_wheel(folder: Path) -> Wheel | None:
    found = list(folder.glob("*.whl"))
    return _wheel(found[0]) if len(found) == 1 else None


def _keep(built: Path, folder: Path) -> Wheel:
    folder.mkdir(exist_ok=True)
    return _wheel(built.replace(folder / built.name))


def _wheel(path: Path) -> Wheel:
    return Wheel(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@contextmanager
def _fixed_date() -> Iterator[None]:
    """hatchling reads the archive's date from the environment, where a CI may have set its own."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = before
