"""The real server process against a scripted engine, with a real byte-level tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from engine_double import ScriptedEngine
from server_process import KEY, RELEASE, Server
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|im_end|>"
LITELLM = ("litellm>=1.100,<2", "mcp")  # its calls with tools import mcp, which it does not require
_TEMPLATE = (
    "{% for message in messages %}\n"
    "    {%- if loop.last and message.role == 'assistant' %}\n"
    "        {{- raise_exception('the last turn must be a user turn') }}\n"
    "    {%- endif %}\n"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + eos_token + '\\n' }}\n"
    "{%- endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE, so that é and emoji are cut inside their UTF-8 bytes."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", END],
        show_progress=False,
    )
    built.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    return built


@pytest.fixture(scope="session")
def eos(tokenizer: Tokenizer) -> int:
    token = tokenizer.token_to_id(END)
    assert token is not None
    return token


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": END}, "bos_token": None, "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def make_server(tokenizer: Tokenizer, eos: int, model_folder: Path) -> Iterator[Callable[..., Server]]:
    """Builds servers that are neither started nor have an engine yet; ends them all."""
    made: list[Server] = []

    def make(*, weights: bool = True) -> Server:
        # A short path: a socket's address has 107 bytes.
        root = Path(tempfile.mkdtemp(prefix="srv-"))
        (root / "run").mkdir(mode=0o700)
        engine = ScriptedEngine(root / "run", RELEASE, eos, tokenizer.get_vocab_size())
        server = Server(root, engine)
        server.write_keys(KEY)
        if weights:
            server.write_weights(model_folder)
        made.append(server)
        return server

    yield make
    for server in made:
        server.engine.kill()
        if hasattr(server, "process"):
            server.stop()
        shutil.rmtree(server.root)


@pytest.fixture(scope="module")
def shared_server(make_server: Callable[..., Server]) -> Server:
    """A ready server for the tests that leave it as they found it."""
    server = make_server()
    server.engine.start()
    server.launch()
    server.wait_healthy()
    return server


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.engine.reset()
    return shared_server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture
def reply(server: Server, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Makes the engine answer with a text; returns its token ids."""

    def set_reply(text: str) -> list[int]:
        server.engine.reply = tokenizer.encode(text).ids
        return server.engine.reply

    return set_reply


@pytest.fixture(scope="session")
def litellm_python() -> Path:
    """The interpreter of LiteLLM's own environment, made at its first use: it pins another `openai` than ours."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "deployctl-tests" / f"litellm-py{sys.version_info.major}.{sys.version_info.minor}"
    interpreter, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *LITELLM], check=True)
        done.touch()
    return interpreter
