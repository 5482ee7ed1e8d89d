"""The step compiled before anything is loaded: what it takes of each device is known, and said, by then."""

import time
from typing import Any

import jax
from jax.sharding import Mesh

from uner_jax.records import InputError
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say
from uner_jax.training.hlo import GIB
from uner_jax.training.shapes import RowShape, abstract_batch, placed
from uner_jax.training.step import Step, TrainState


def compile_ahead(step: Any, config: TrainConfig, abstract: TrainState, rows: RowShape, mesh: Mesh) -> Step:
    """The step for states and batches of these shapes on the mesh.

    Raises InputError if the compiler finds that it does not fit the devices.
    """
    started = time.perf_counter()
    lowered = step.lower(placed(abstract, mesh), abstract_batch(config, rows, mesh))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the step does not fit these devices ({reason}); `uner plan RECIPE.py --topology ...` tries what would"
        ) from error
    say(f"memory     {_memory(compiled, mesh)}, compiled in {time.perf_counter() - started:,.0f} s")
    return compiled


def _memory(compiled: Any, mesh: Mesh) -> str:
    """The most that is taken of a device at any time, and what it has, where it says so."""
    peak = compiled.memory_analysis()
    stats = mesh.local_devices[0].memory_stats() or {}
    limit = f" of {stats['bytes_limit'] / GIB:,.2f}" if "bytes_limit" in stats else ""
    return f"{peak.peak_memory_in_bytes / GIB:,.3g}{limit} GiB of each device at the peak of a step"
