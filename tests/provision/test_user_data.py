"""User-data: small, constant, without a secret, and understood by cloud-init."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from provision import naming
from provision.catalog import REGIONS
from provision.errors import SpecError
from provision.user_data import MAX_BYTES, UserDataTooLargeError, check_size, render_user_data, stage0, strip_source
from runtime.vm import Provider, Vm, decode_vm
from tests.lab import rootfs
from tests.lab.guest import require_lab
from tests.lab.rootfs import Suite

STAGE0_BYTES = 7 * 1024
SOURCE = Path(__file__).resolve().parents[2] / "templates" / "stage0.py"
PROVIDERS: tuple[Provider, ...] = ("aws", "alicloud")


def longest(provider: Provider) -> Vm:
    """The longest legal name, region, bucket and endpoint."""
    name = "n" * 25
    region = max(REGIONS[provider], key=len)
    bucket = (naming.bucket_prefix(name) + "f" * 63)[:63]  # both stores' limit
    host = {
        "aws": f"{bucket}.s3.dualstack.{region}.amazonaws.com",
        "alicloud": f"{bucket}.oss-{region}-internal.aliyuncs.com",
    }
    return Vm(name=name, provider=provider, region=region, bucket=bucket, endpoint=f"https://{host[provider]}")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_longest_legal_user_data_fits(provider: Provider) -> None:
    assert len(render_user_data(longest(provider)).encode()) <= MAX_BYTES


def test_too_much_of_it_is_an_error_with_the_number() -> None:
    check_size("x" * MAX_BYTES)
    with pytest.raises(UserDataTooLargeError, match="12,289 bytes, at most 12,288") as caught:
        check_size("x" * (MAX_BYTES + 1))
    assert isinstance(caught.value, SpecError)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_is_one_plain_cloud_config_that_only_starts_stage_0(provider: Provider) -> None:
    text = render_user_data(longest(provider))
    assert text.startswith("#cloud-config\n")
    assert text.isascii()
    config = yaml.safe_load(text)
    assert set(config) == {"write_files", "runcmd"}
    assert config["runcmd"] == [["systemctl", "enable", "--now", "deployctl-stage0.service"]]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_its_files_are_vm_json_stage_0_and_the_unit_to_the_byte(provider: Provider) -> None:
    vm = longest(provider)
    files = {file["path"]: file["content"] for file in yaml.safe_load(render_user_data(vm))["write_files"]}
    assert decode_vm(files.pop("/etc/deployctl/vm.json").encode()) == vm
    assert files.pop("/etc/deployctl/stage0.py") == stage0() + "\n"
    unit = SOURCE.with_name("deployctl-stage0.service").read_text()
    assert files == {"/etc/systemd/system/deployctl-stage0.service": unit}


def test_the_same_vm_gets_the_same_user_data() -> None:
    assert render_user_data(longest("aws")) == render_user_data(longest("aws"))


def test_stage_0_fits_its_share() -> None:
    assert len(stage0().encode()) <= STAGE0_BYTES


def test_what_travels_of_stage_0_is_the_same_program() -> None:
    tree = ast.parse(SOURCE.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    assert ast.dump(ast.parse(stage0())) == ast.dump(tree)


def test_stage_0_runs_on_python_3_10_without_any_package() -> None:
    tree = ast.parse(stage0(), feature_version=(3, 10))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= sys.stdlib_module_names


def test_stripping_leaves_a_hash_inside_a_string_alone() -> None:
    source = '"""Doc."""\n\nA = "# no comment"  # why\n\n\ndef f() -> str:\n    """Doc."""\n    # why\n    return A\n'
    assert strip_source(source) == 'A = "# no comment"\ndef f():\n return A'


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_installed_cloud_init_finds_it_valid(provider: Provider, tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        pytest.skip("no cloud-init on this machine: apt-get install -y cloud-init")
    file = tmp_path / "user-data"
    file.write_text(render_user_data(longest(provider)))
    done = subprocess.run(
        ["cloud-init", "schema", "--config-file", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_cloud_init_of_debian_12_and_13_finds_it_valid(suite: Suite, tmp_path: Path) -> None:
    require_lab()
    for provider in PROVIDERS:
        (tmp_path / provider).write_text(render_user_data(longest(provider)))
        done = schema_check(suite, tmp_path, provider)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_cloud_init_of_debian_13_would_refuse_an_unknown_key(tmp_path: Path) -> None:
    require_lab()
    (tmp_path / "wrong").write_text(render_user_data(longest("aws")) + "run_cmd: []\n")
    assert schema_check("trixie", tmp_path, "wrong").returncode != 0


def schema_check(suite: Suite, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """`cloud-init schema` of the lab's root filesystem, over a file of `folder`; the filesystem stays as it is."""
    root = rootfs.rootfs(suite)
    script = 'mount --bind "$1" "$2/mnt" && exec chroot "$2" cloud-init schema --config-file "/mnt/$3"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), str(root), name]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
