"""The machine's wheel: the same bytes for the same content, from a checkout and from an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from provision.spec import SpecError
from provision.wheel import BESIDE, PACKAGES, Wheel, build_from_checkout, find_checkout, runtime_wheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    for name in BESIDE:
        shutil.copy(ROOT / name, root / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_a_checkout_gives_the_same_bytes_twice(
    checkout: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_from_checkout(checkout)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for path in checkout.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    second = build_from_checkout(checkout)
    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()
    assert os.environ["SOURCE_DATE_EPOCH"] == "1700000000"


def test_a_changed_file_is_in_the_next_wheel(checkout: Path) -> None:
    first = build_from_checkout(checkout)
    (checkout / "runtime" / "extra.py").write_text("x = 1\n")
    second = build_from_checkout(checkout)
    assert second.sha256 != first.sha256
    assert "runtime/extra.py" in zipfile.ZipFile(second.path).namelist()


def test_an_unchanged_checkout_is_built_once(checkout: Path) -> None:
    first = build_from_checkout(checkout)
    stamp = first.path.stat().st_mtime_ns
    (checkout / "runtime" / "__pycache__").mkdir()
    (checkout / "runtime" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"")
    assert build_from_checkout(checkout) == first
    assert first.path.stat().st_mtime_ns == stamp


def test_this_repository_is_built_with_all_its_packages() -> None:
    wheel = runtime_wheel()
    assert find_checkout() == ROOT
    assert {name.split("/")[0] for name in zipfile.ZipFile(wheel.path).namelist()} >= set(PACKAGES)


def test_an_installation_gives_the_same_bytes_twice_and_installs_again(checkout: Path, tmp_path: Path) -> None:
    """Installed with pip, rebuilt there twice, and the rebuilt wheel installed with pip's own checks."""
    built = build_from_checkout(checkout)
    there, again = tmp_path / "there", tmp_path / "again"
    _install(built.path, there)
    rebuilt = [_rebuilt(there, tmp_path / name) for name in ("one", "two")]
    assert rebuilt[0].sha256 == rebuilt[1].sha256
    _install(rebuilt[0].path, again)
    assert "runtime/agent/main.py" in _contents(again)
    assert _contents(again) == _contents(there)


def _install(wheel: Path, target: Path) -> None:
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*argv, "--disable-pip-version-check", "--target", str(target), str(wheel)], check=True)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".dist-info" not in str(path))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.suffix != ".pyc"}


def _rebuilt(there: Path, cache: Path) -> Wheel:
    program = "from provision.wheel import rebuild_installed as r; print(r().path)"
    env = {**os.environ, "PYTHONPATH": str(there), "XDG_CACHE_HOME": str(cache)}
    said = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=there, capture_output=True, text=True, check=True
    )
    return runtime_wheel(said.stdout.strip())


def test_a_wheel_of_the_users_own_is_taken_as_it_is(checkout: Path, tmp_path: Path) -> None:
    built = build_from_checkout(checkout)
    own = shutil.copy(built.path, tmp_path)
    assert runtime_wheel(own) == Wheel(Path(own), built.sha256)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("other-1.0-py3-none-any.whl", b"", "is not named like a wheel of deployctl"),
        ("deployctl-0.1.0-cp311-cp311-linux_x86_64.whl", b"", "is not named like a wheel of deployctl"),
        ("deployctl-0.1.0-py3-none-any.whl", b"no archive", "cannot be read as a wheel"),
        ("deployctl-0.1.0-py3-none-any.whl", None, "does not exist"),
    ],
)
def test_what_is_no_wheel_of_ours_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=reason):
        runtime_wheel(str(tmp_path / name))


def test_a_wheel_under_another_versions_name_is_refused(checkout: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "deployctl-9.9-py3-none-any.whl"
    shutil.copy(build_from_checkout(checkout).path, renamed)
    with pytest.raises(SpecError, match="which its file name does not say"):
        runtime_wheel(str(renamed))
