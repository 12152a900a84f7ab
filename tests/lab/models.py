"""Models that are cheap to move: a real tokenizer and config, and weights of any size that mean nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|im_end|>"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
}


def write_tokenizer(folder: Path, vocabulary: int = 300) -> Tokenizer:
    """Byte-level BPE with a chat template; below 258 tokens it knows ASCII only."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=[letter for letter in alphabet if vocabulary >= 258 or letter.isascii()] + ["Ġ", "Ċ"],
        special_tokens=["<|im_start|>", END],
        show_progress=False,
    )
    built.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    built.save(str(folder / "tokenizer.json"))
    about = {"eos_token": {"content": END}, "bos_token": None, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return built


def write_hollow_model(folder: Path, shards: int = 3, shard_bytes: int = 8 * 2**20) -> Path:
    """A model folder in Hugging Face's layout whose tensors are noise: for a scripted engine."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder)
    config = {**CONFIG, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": tokenizer.token_to_id(END)}
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    noise = random.Random(1)
    for number, name in enumerate(names):
        header = json.dumps({f"w{number}": {"dtype": "U8", "shape": [shard_bytes], "data_offsets": [0, shard_bytes]}})
        padded = header.encode() + b" " * (-len(header) % 8)
        (folder / name).write_bytes(len(padded).to_bytes(8, "little") + padded + noise.randbytes(shard_bytes))
    weight_map = {f"w{number}": name for number, name in enumerate(names)}
    index = {"metadata": {"total_size": shards * shard_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
