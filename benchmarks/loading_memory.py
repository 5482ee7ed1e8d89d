"""Host memory of loading a Hugging Face checkpoint onto a mesh: it is read a tensor at a time into shards.

python benchmarks/loading_memory.py --gigabytes 2

Hardware: two CPU cores, 8 GB, and the checkpoint on disk. Reaches: see benchmarks/results.md.

A checkpoint of that size is generated (bfloat16, LLaMA's shape) and loaded on simulated devices, in a process of its
own, as it is and in float32. What the devices hold lies in the same memory here, so the peak is that of the parameters
themselves and of what is beside them. The largest tensor is that of the file, in the dtype that is asked for.
"""

import json
import tempfile
from pathlib import Path

import tyro
from peak_memory import run_apart

from uner_jax.command import run_command

GB = 10**9

WRITE = """
import sys
from pathlib import Path
import numpy as np, ml_dtypes
from safetensors.numpy import save_file
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model, flatten
from uner_jax.records import write_json
from uner_jax.weights.hf_config import config_to_hf
from uner_jax.weights.names import TENSOR_NAMES
directory, layers = Path(sys.argv[1]), int(sys.argv[2])
config = LlamaConfig(32_000, 2048, 5504, layers, 16, 16, 128)
write_json(directory / "config.json", config_to_hf(config))
weight_map = {}
for name, leaf in flatten(abstract_model(config)).items():
    theirs = TENSOR_NAMES[name]
    shape = theirs.their_shape(leaf.shape[1:] if theirs.per_layer else leaf.shape)
    for layer in range(layers) if theirs.per_layer else range(1):
        full = theirs.name.format(layer=layer)
        file = f"{full}.safetensors"
        save_file({full: np.ones(shape, ml_dtypes.bfloat16)}, directory / file)
        weight_map[full] = file
write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})
"""

LOAD = """
import json, sys
import jax
from peak_memory import PeakMemory
from uner_jax.mesh import make_mesh
from uner_jax.model.parameters import flatten
from uner_jax.weights import load_model
mesh = make_mesh(1, 4, 2)
jax.block_until_ready(jax.device_put(1.0))
with PeakMemory() as memory:
    model = load_model(sys.argv[1], sys.argv[2], mesh)
    jax.block_until_ready(model)
config = model.config
tensor = model.compute_dtype.itemsize * config.hidden_size * max(config.vocab_size, config.intermediate_size)
sizes = [leaf.nbytes for leaf in flatten(model).values()]
print(json.dumps({"peak": memory.peak, "model": sum(sizes), "largest": tensor, "seconds": memory.seconds}))
"""


def loading_memory(gigabytes: float = 2.0) -> None:
    """Generate a checkpoint, load it in bfloat16 and in float32, and print what each took.

    Args:
        gigabytes: Size of the checkpoint, in 10^9 bytes.
    """
    layers = max(1, round(gigabytes * GB / 2 / (4 * 2048 * 2048 + 3 * 2048 * 5504)))
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    with tempfile.TemporaryDirectory() as directory:
        run_apart(WRITE, [directory, str(layers)], environment)
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        print(f"checkpoint: {size / GB:.2f} GB in bfloat16, {layers} layers, on a mesh of 1 x 4 x 2 simulated devices")
        for dtype in ("bfloat16", "float32"):
            found = json.loads(run_apart(LOAD, [directory, dtype], environment))
            beside = (found["peak"] - found["model"]) / found["largest"]
            print(
                f"{dtype}: parameters {found['model'] / GB:.2f} GB, peak {found['peak'] / GB:.2f} GB: beside them "
                f"{beside:.2f} times the largest tensor of {found['largest'] / GB:.3f} GB, in {found['seconds']:.0f} s"
            )


def main(arguments: list[str]) -> None:
    """Read the arguments and measure."""
    tyro.cli(loading_memory, prog="benchmarks/loading_memory.py", args=arguments)


if __name__ == "__main__":
    run_command(main)
