"""A model's folder comes from a stranger: its code is never run, its chat template reaches nothing but its messages."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import load_decoder
from runtime.ops.ops import choose
from runtime.server.chat_template import ChatTemplate, ChatTemplateError
from runtime.server.tokenizer import ModelTokenizer
from tests.lab import checkpoints

CPU = torch.device("cpu")
HI = [{"role": "user", "content": "hi"}]
CODE = ("configuration_x.py", "modeling_x.py", "tokenization_x.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint that also names code of its own, and a pickled file beside its weights."""
    folder = tmp_path / "model"
    checkpoints.save("llama", folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")  # what pickle would run
    for name in CODE:
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}, "tokenizer_class": "X"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_code_and_pickles_in_a_models_folder_are_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    spec = read_model_spec(folder)
    ops = choose(CPU, torch.float32)
    load_decoder(spec, Checkpoint(folder), ops, device=CPU, dtype=torch.float32, max_model_len=64)
    ModelTokenizer.load(folder)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__code__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({'role': 'system'}) %}",
        "{% for _ in range(10 ** 12) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_nothing_but_its_messages(source: str) -> None:
    shown = ""
    with contextlib.suppress(ChatTemplateError):
        shown = ChatTemplate(source, {}).render(HI)
    assert shown == ""
    assert HI == [{"role": "user", "content": "hi"}]


def test_what_a_message_says_is_never_a_template() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    said = "{{ 7 * 7 }}{% raw %}{{ messages }}"
    assert template.render([{"role": "user", "content": said}]) == said
