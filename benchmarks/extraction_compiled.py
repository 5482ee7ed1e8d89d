"""The engine's programs for LLaMA-7B, compiled for slices and nodes that are not here: their memory.

python benchmarks/extraction_compiled.py

Hardware: two CPU cores, 4 GB of memory and the extra `plan`; no accelerator, no network. A minute or two a TPU
program, seconds a GPU program. Reaches: see benchmarks/results.md.

A copy of the model reads 2,048 tokens at a time and writes 32 answers, behind contexts of 320 tokens with 64 tokens of
their own: four times as long as those of the published benchmarks. Peak is what the compiler says the layers' program
needs of a device, with their parameters and the pool, and the table of words, in and out, beside it. Reading and
writing share the parameters, so what a device must have is the larger of the two and what is read and waits for the
pool, as much as one batch's keys and values.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from uner_jax.command import run_command
from uner_jax.extraction import pool, prefill
from uner_jax.mesh import make_mesh, sharding_of
from uner_jax.model import stages
from uner_jax.model.adapters import freeze
from uner_jax.model.cache import KeyValues, Seating
from uner_jax.model.llama import Llama
from uner_jax.model.llamas import LLAMA_7B
from uner_jax.model.parameters import abstract_model, tree_shardings
from uner_jax.training.hlo import GIB
from uner_jax.training.topologies import parse_topology

ROWS, PREFIXES, CONTEXT, OWN, BATCH = 32, 16, 320, 64, 1


@dataclasses.dataclass(frozen=True)
class Case:
    """Where, in which dtype, and how many devices hold one copy."""

    topology: str
    dtype: str = "bfloat16"
    tensor: int = 1


CASES = (
    Case("h100x1"),
    Case("h100x1", "int8"),
    Case("h100x8"),
    Case("h100x8", tensor=8),
    Case("v5e:2x4", "int8"),
    Case("v5e:2x4", tensor=4),
    Case("v5e:2x4", tensor=8),
)


def compiled(only: str = "") -> None:
    """Compile and print a line a case.

    Args:
        only: Topologies to compile, separated by commas; all without.
    """
    print("| topology | weights | mesh | copies | limit | keys and values | reading, peak | writing, peak | fits |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        if not only or case.topology in only.split(","):
            print(_line(case), flush=True)


def _line(case: Case) -> str:
    topology = parse_topology(case.topology)
    mesh = make_mesh(data=-1, fsdp=1, tensor=case.tensor, devices=topology.devices())
    copies = mesh.shape["data"]
    with jax.set_mesh(mesh):
        model = _model(case.dtype, mesh)
        read = _key_values(mesh, BATCH * copies, prefill.ROW)
        ends = stages.Stages(model, LLAMA_7B.num_hidden_layers).ends
        words = sum(_bytes(leaf) for leaf in jax.tree.leaves(ends))
        peaks = [words + _peak(program) for program in (_reading(model, mesh, copies), _writing(model, mesh, copies))]
    waiting = sum(_bytes(leaf) for leaf in jax.tree.leaves(read))
    fits = max(peaks) + waiting <= topology.limit_gib * GIB
    shape = " x ".join(str(size) for size in mesh.shape.values())
    sizes = " | ".join(f"{size / GIB:.2f}" for size in (waiting, *peaks))
    answer = "yes" if fits else "no"
    return f"| {case.topology} | {case.dtype} | {shape} | {copies} | {topology.limit_gib} | {sizes} | {answer} |"


def _model(dtype: str, mesh: Any) -> Llama:
    model = abstract_model(LLAMA_7B, compute_dtype=jnp.bfloat16)
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), model)
    if dtype == "int8":
        model = jax.eval_shape(lambda model: freeze(model, "int8"), model)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        model,
        tree_shardings(model, mesh),
    )


def _key_values(mesh: Any, rows: int, slots: int) -> KeyValues:
    shape = LLAMA_7B.num_hidden_layers, rows, LLAMA_7B.num_key_value_heads, slots, LLAMA_7B.head_dim
    one = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding_of(mesh, shape, pool.KEPT))
    return KeyValues(one, one)


def _integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32)


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """What a device holds of it."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _reading(model: Llama, mesh: Any, copies: int) -> jax.stages.Lowered:
    rows = _integers(BATCH * copies, prefill.ROW)
    x_BTD = _activations(mesh, BATCH * copies, prefill.ROW)
    return stages.read_stage.lower((model.layers, None), x_BTD, (rows, rows, rows), jnp.bfloat16)


def _writing(model: Llama, mesh: Any, copies: int) -> jax.stages.Lowered:
    rows, prefixes = ROWS * copies, PREFIXES * copies
    seating = Seating(_integers(prefixes), _integers(rows), _integers(rows), pool.SHARERS)
    held = _key_values(mesh, prefixes, CONTEXT), _key_values(mesh, rows, OWN)
    return stages.extend_stage.lower(
        (model.layers, None), _activations(mesh, rows, 1), _integers(rows, 1), seating, *held
    )


def _activations(mesh: Any, rows: int, length: int) -> jax.ShapeDtypeStruct:
    shape = rows, length, LLAMA_7B.hidden_size
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding_of(mesh, shape, ("batch", None, None)))


def _peak(lowered: jax.stages.Lowered) -> int:
    return lowered.compile().memory_analysis().peak_memory_in_bytes


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(compiled, args=arguments)


if __name__ == "__main__":
    run_command(main)
