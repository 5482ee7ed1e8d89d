"""Host memory and speed of conversion, both ways: weights pass through a tensor at a time.

python benchmarks/conversion_memory.py --gigabytes 4

Hardware: two CPU cores, and three times the checkpoint on disk. Reaches: see benchmarks/results.md.

A directory of that size is generated (bfloat16, LLaMA's shape), converted to a checkpoint of ours and back to a
directory, each in a process of its own, and the two directories are compared. The peak is the process's own memory
(pages of files are the system's to take back) over what it has after its imports; the largest tensor is the largest
one of the Hugging Face directory, not the stack of all layers that a checkpoint of ours has.
"""

import filecmp
import json
import tempfile
from pathlib import Path
from typing import Literal

import tyro
from peak_memory import run_apart

from uner_jax.command import run_command
from uner_jax.records import InputError

GB = 10**9

WRITE = """
import sys
from pathlib import Path
import ml_dtypes, numpy as np, tokenizers
from uner_jax.model.config import LlamaConfig
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.hf import write_hf_tensors
from uner_jax.weights.tensors import places

class Drawn:
    where = "drawn numbers"
    dtype = np.dtype(ml_dtypes.bfloat16)

    def __init__(self, config):
        self.config = config
        self.shapes = {place.name: place.shape for place in places(config)}
        self.row = np.random.default_rng(0).normal(0, 0.02, 2**20).astype(self.dtype)

    def read(self, name):
        # as hard to compress as weights are.
        size = int(np.prod(self.shapes[name]))
        return np.resize(np.roll(self.row, len(name) + size % 999), size).reshape(self.shapes[name])

    def check_read(self):
        pass

backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"</s>": 0, "a": 1}, merges=[]))
backend.add_special_tokens(["</s>"])
config = LlamaConfig(32_000, 2048, 5504, int(sys.argv[2]), 16, 16, 128)
write_hf_tensors(Drawn(config), Tokenizer(backend, None, 0, 0, False), Path(sys.argv[1]))
"""

CONVERT = """
import json, sys
from pathlib import Path
import jax
import transformers
from peak_memory import PeakMemory
from uner_jax.weights import convert
from uner_jax.weights.load import open_tensors
jax.block_until_ready(jax.device_put(1.0))
source, destination, dtype = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
with PeakMemory() as memory:
    print(getattr(convert, sys.argv[1])(source, destination, dtype), file=sys.stderr)
print(json.dumps({"peak": memory.peak, "seconds": memory.seconds}))
"""


def conversion_memory(gigabytes: float = 4.0, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> None:
    """Generate a directory, convert it to a checkpoint and back, and print what each took.

    Args:
        gigabytes: Size of the directory, in 10^9 bytes.
        dtype: Dtype that both conversions write; the directory is in bfloat16.
    """
    layers = max(1, round((gigabytes * GB / 2 - 2 * 32_000 * 2048) / (4 * 2048 * 2048 + 3 * 2048 * 5504)))
    environment = {"JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as temporary:
        first, checkpoint, second = (Path(temporary, name) for name in ("first", "checkpoint", "second"))
        run_apart(WRITE, [str(first), str(layers)], environment)
        size = sum(path.stat().st_size for path in first.glob("*.safetensors"))
        largest = 32_000 * 2048 * (2 if dtype == "bfloat16" else 4)
        print(
            f"{size / GB:.2f} GB in bfloat16, {layers} layers; the largest tensor has {largest / GB:.3f} GB in {dtype}"
        )
        for name, source, target in (("convert_from_hf", first, checkpoint), ("convert_to_hf", checkpoint, second)):
            found = json.loads(run_apart(CONVERT, [name, str(source), str(target), dtype], environment))
            print(
                f"{name}: peak {found['peak'] / GB:.3f} GB over the imports, {found['peak'] / largest:.2f} times the "
                f"largest tensor; {size / GB / found['seconds']:.2f} GB/s of the directory, {found['seconds']:.0f} s"
            )
            if source == checkpoint and dtype == "bfloat16":
                _compare(first, second)


def _compare(first: Path, second: Path) -> None:
    names = [path.name for path in first.glob("*.safetensors*")]
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    if different or missing:
        raise InputError(f"not the same weights after both conversions: {different + missing}")
    print("both directories hold the same bytes")


def main(arguments: list[str]) -> None:
    """Read the arguments and measure."""
    tyro.cli(conversion_memory, prog="benchmarks/conversion_memory.py", args=arguments)


if __name__ == "__main__":
    run_command(main)
