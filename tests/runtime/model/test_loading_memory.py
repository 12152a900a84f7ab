"""Loading a share of a model takes the memory of that share, not of the model, with the readers ahead of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from transformers import LlamaConfig

from runtime.engine.readahead import PIECE, READERS
from tests.lab import checkpoints
from tests.runtime.engine.engine_process import write_release

ROOT = Path(__file__).parents[3]
MIB = 2**20
SLACK = 16 * MIB  # the allocator's, and one matrix while it is packed
RANKS = 4
CONFIG = LlamaConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    bos_token_id=None,
    eos_token_id=None,
)
LOAD = """
import sys
from pathlib import Path
from runtime.engine.load import load_runner, read_release
from runtime.model.group import Group

def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

release = read_release(Path(sys.argv[1]))
before, own = resident("VmRSS:"), resident("RssAnon:")
runner = load_runner(release, Group(0, release.options.tensor_parallel), lambda share: None)
print(resident("VmHWM:") - before, resident("RssAnon:") - own)
"""


def load(release: Path) -> tuple[int, int]:
    """Bytes of resident memory that loading needed at most, and of anonymous memory that it kept."""
    argv = [sys.executable, "-c", LOAD, str(release)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    peak, kept = map(int, done.stdout.split())
    return peak, kept


def test_what_loading_needed_beside_the_weights_goes_back_to_the_system(tmp_path: Path) -> None:
    model = checkpoints.save_config(CONFIG, tmp_path).bfloat16()
    model.save_pretrained(tmp_path)
    table = CONFIG.vocab_size * CONFIG.hidden_size
    others = sum(one.numel() for one in model.parameters()) - table
    held = 2 * table + others  # the embedding in bfloat16, all else in int8
    _, kept = load(write_release(tmp_path / "release", tmp_path, quantization="int8"))
    assert held * 0.9 < kept < held * 1.1 + SLACK, (kept, held)


def test_a_rank_holds_its_share_and_at_most_one_file_while_it_loads(tmp_path: Path) -> None:
    checkpoints.save_config(CONFIG, tmp_path, shard="20MB")
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    release = write_release(tmp_path / "release", tmp_path, tensor_parallel=RANKS)
    peak, _ = load(release)
    limit = sum(sizes) / RANKS + max(sizes) + READERS * PIECE + SLACK
    assert limit < sum(sizes) * 0.75, "a model this small proves nothing"
    assert peak < limit, (peak, limit)
