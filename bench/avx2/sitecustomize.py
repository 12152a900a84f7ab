"""Python's own hook, on the path of what is measured as if on AVX2 (bench/narrow.py): torch says that there is nothing
wider, so that vLLM takes its kernels for AVX2."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "torch.cpu"
WIDER = (
    "_is_avx512_supported", "_is_avx512_bf16_supported", "_is_vnni_supported", "_is_amx_tile_supported",
    "_is_amx_fp16_supported",
)  # fmt: skip


class Narrow:
    """Finds torch.cpu as everybody does, and changes what it says."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            for function in WIDER:
                setattr(module, function, lambda: False)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Narrow())
