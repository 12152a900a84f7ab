"""The walls of the house: who imports whom, what a process must not load, how large the engine is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("stacks", "provision", "runtime")
SHARED = (
    "runtime.sizing",
    "runtime.model_spec",
    "runtime.deployment",
    "runtime.handover",
    "runtime.mailbox",
    "runtime.bucket",
    "runtime.s3",
    "runtime.oss",
    "runtime.alicloud_api",
    "runtime.alicloud_credentials",
    "runtime.model_files",
    "runtime.vm",
)
ENGINE_LINES = 5000

# importer: the only modules of ours that it may import (a name stands for everything below it)
ALLOWED: dict[str, tuple[str, ...]] = {
    "stacks": ("stacks", "provision", *SHARED),
    "provision": ("provision", *SHARED),
    "runtime": ("runtime",),
    **dict.fromkeys(SHARED, SHARED),
    "runtime.ipc": (),
    "runtime.ops": ("runtime.ops",),
    "runtime.model": ("runtime.model", "runtime.ops", *SHARED),
    "runtime.engine": ("runtime.engine", "runtime.model", "runtime.ops", "runtime.ipc", *SHARED),
    "runtime.server": ("runtime.server", "runtime.ipc", *SHARED),
    "runtime.agent": ("runtime.agent", "runtime.ipc", *SHARED),
}

# importer: libraries that must not appear in it, at whatever depth of the code
FORBIDDEN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SHARED, ("torch", "transformers", "fastapi")),
    "stacks": ("torch", "transformers"),
    "provision": ("torch", "transformers"),
    "runtime.ipc": ("torch", "fastapi"),
    "runtime.server": ("torch", "transformers"),
    "runtime.agent": ("torch", "transformers"),
    "runtime.engine": ("fastapi", "starlette", "uvicorn"),
    "runtime.model": ("fastapi", "starlette", "uvicorn"),
    "runtime.ops": ("fastapi", "starlette", "uvicorn", "safetensors", "transformers"),
    "runtime.engine.scheduler": ("torch", "numpy"),
    "runtime.engine.blocks": ("torch", "numpy"),
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import, inside functions and `if TYPE_CHECKING` too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in MODULES else base


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def nearest(table: dict[str, tuple[str, ...]], module: str) -> tuple[str, ...]:
    """The rule of the longest prefix of `module`."""
    prefixes = [prefix for prefix in table if covers(prefix, module)]
    return table[max(prefixes, key=len)]


def test_a_module_imports_only_what_lies_on_its_side_of_the_wall() -> None:
    crossings = [
        f"{module}:{line} imports {name}"
        for module, path in MODULES.items()
        for line, name in imports(module, path)
        if name.split(".")[0] in OURS
        and name not in OURS
        and not any(covers(prefix, name) for prefix in (module, *nearest(ALLOWED, module)))
    ]
    assert not crossings


def test_a_module_names_no_library_that_its_process_must_not_load() -> None:
    found = [
        f"{module}:{line} imports {name}"
        for module, path in MODULES.items()
        for line, name in imports(module, path)
        for prefix, banned in FORBIDDEN.items()
        if covers(prefix, module) and name.split(".")[0] in banned
    ]
    assert not found


def test_the_rules_speak_of_modules_that_exist() -> None:
    assert {*ALLOWED, *FORBIDDEN} <= set(MODULES)


@pytest.mark.parametrize("side", ["runtime.server", "runtime.agent"])
def test_the_api_process_and_the_agent_never_load_torch(side: str) -> None:
    modules = [name for name in MODULES if covers(side, name) and not name.endswith("__main__")]
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(','.join(sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_engine_model_and_ops_fit_in_one_head() -> None:
    counts = {
        package: sum(len(path.read_text().splitlines()) for path in (ROOT / "runtime" / package).rglob("*.py"))
        for package in ("engine", "model", "ops")
    }
    assert sum(counts.values()) <= ENGINE_LINES, counts


FORBIDDEN_CODE = re.compile(
    r"\b(?:import|from)\s+(?:pickle|dill|cloudpickle|jsonpickle|marshal|shelve|joblib)\b"
    r"|\btorch\.load\b|\ballow_pickle\s*=\s*True|trust_remote_code|weights_only"
    r"|\bshell\s*=\s*True|\bos\.(?:system|popen)\(|(?<![.\w])eval\(|\byaml\.(?:unsafe_)?load\("
)


def test_nothing_unpickles_runs_code_from_a_model_or_goes_through_a_shell() -> None:
    others = [path for folder in ("bench", "templates", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in [*MODULES.values(), *others]
        for match in FORBIDDEN_CODE.finditer(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "state = torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "eval(text)",
        "yaml.load(text)",
    ],
)
def test_the_search_for_such_code_would_find_it(line: str) -> None:
    assert FORBIDDEN_CODE.search(line)
