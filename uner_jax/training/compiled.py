"""A training step compiled for devices that are not there: what it takes of each, and what it is made of."""

import dataclasses
import math
import re
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import Mesh

from uner_jax.mesh import make_mesh
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import flatten
from uner_jax.training import hlo
from uner_jax.training.activations import activation_bytes, kept_activations
from uner_jax.training.config import TrainConfig
from uner_jax.training.optimizer import make_optimizer
from uner_jax.training.shapes import RowShape, abstract_batch, abstract_state, check_batch, placed
from uner_jax.training.step import TrainState, make_step
from uner_jax.training.topologies import Topology, target_libraries

# The schedule is a formula of the step's number: how many steps there are changes no shape.
STEPS = 1000
LARGEST = 8

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step on one device of a topology. Sizes in bytes; where `error` is set, the compiler refused it.

    `peak` is the most that is taken at any time, or None where the compiler did not come so far as to say; of a
    refused step it is what the compiler says that it needs at least. `batch` are the rows of one step, `activations`
    what is kept of the forward pass of a microbatch for its backward pass (`kept_activations`).
    """

    topology: Topology
    mesh: dict[str, int]
    rows_a_device: int
    kernel: str
    parameters: int
    optimizer: int
    batch: int
    peak: int | None
    activations: int = 0
    donated: bool = False
    rematerialised: bool = False
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    buffers: tuple[hlo.Buffer, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @property
    def fits(self) -> bool:
        """Whether a device holds it; XLA's compiler for GPUs does not ask."""
        return not self.error and self.peak is not None and self.peak <= self.topology.limit_gib * hlo.GIB

    @property
    def fused(self) -> bool:
        """Whether the fused attention that was chosen is called in the program, or none was chosen."""
        return self.kernel == "reference" or bool(self.calls.get(self.kernel))


def compile_step(config: TrainConfig, architecture: LlamaConfig, rows: RowShape, topology: Topology) -> Compiled:
    """Compile the step of the recipe for the topology; nothing is allocated and nothing runs.

    Raises InputError if the mesh or the batch does not fit the number of devices, or the compiler is not installed.
    """
    mesh = make_mesh(**dataclasses.asdict(config.mesh), devices=topology.devices())
    check_batch(config, mesh)
    optimizer = make_optimizer(config.optimizer, STEPS)
    with jax.set_mesh(mesh), _target(topology):
        state = placed(abstract_state(config, architecture, optimizer, rows, mesh), mesh)
        batch = abstract_batch(config, rows, mesh)
        begun = _described(config, topology, mesh, state, batch)
        if begun.parameters + begun.optimizer > topology.limit_gib * hlo.GIB:
            # no temporary memory can be so small.
            return dataclasses.replace(begun, error="parameters and optimizer alone are larger than a device")
        started = time.perf_counter()
        # what jax.jit makes can be lowered, which the type of a step does not say.
        step: Any = make_step(optimizer, config.gradient_accumulation, mesh, state)
        compiled, error, log = _compile(step.lower(state, batch))
    done = dataclasses.replace(
        begun,
        activations=_activations(config, architecture, begun, state),
        seconds=time.perf_counter() - started,
        rematerialised=any(hlo.REMATERIALISED in line for line in log),
    )
    names = _names(state, config, begun.rows_a_device)
    return _measured(done, compiled, names) if compiled is not None else _refused(done, error, names)


def _target(topology: Topology) -> AbstractContextManager[None]:
    return target_libraries() if topology.platform == "cuda" else nullcontext()


def _activations(config: TrainConfig, architecture: LlamaConfig, begun: Compiled, state: TrainState) -> int:
    # one device's part: outside of the mesh.
    with _target(begun.topology):
        attention, tensor = state.model.attention, begun.mesh["tensor"]
        return activation_bytes(kept_activations(config, architecture, attention, begun.rows_a_device, tensor))


def _described(
    config: TrainConfig, topology: Topology, mesh: Mesh, state: TrainState, batch: dict[str, jax.ShapeDtypeStruct]
) -> Compiled:
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.gradient_accumulation
    arrays = [hlo.Buffer(name, _shape(leaf), _size(leaf)) for name, leaf in flatten(state.model).items()]
    return Compiled(
        topology=topology,
        mesh=dict(mesh.shape),
        rows_a_device=config.data.batch_size // parts,
        kernel=state.model.attention.kernel,
        parameters=_total(state.model),
        optimizer=_total(state.optimizer),
        batch=_total(batch),
        peak=None,
        buffers=_largest(arrays),
    )


def _size(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of it that lie on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _shape(leaf: jax.ShapeDtypeStruct) -> str:
    kind = {"float32": "f32", "bfloat16": "bf16"}.get(str(leaf.dtype), str(leaf.dtype))
    return f"{kind}[{','.join(map(str, leaf.sharding.shard_shape(leaf.shape)))}]"


def _total(tree: Any) -> int:
    return sum(map(_size, jax.tree.leaves(tree)))


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str, list[str]]:
    """The program, or why there is not enough memory for it, and what the compiler wrote."""
    log: list[str] = []
    try:
        with hlo.compiler_log() as log:
            return lowered.compile(), "", log
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            print("\n".join(log), file=sys.stderr)
            raise
        return None, str(error), log


def _measured(begun: Compiled, compiled: jax.stages.Compiled, names: dict[Shape, str]) -> Compiled:
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    return dataclasses.replace(
        begun,
        peak=memory.peak_memory_in_bytes,
        donated=memory.alias_size_in_bytes >= begun.parameters + begun.optimizer,
        calls=hlo.kernels(text),
        collectives=hlo.collectives(text),
        buffers=_largest([*begun.buffers, *_named(hlo.values(text, LARGEST), names)]),
    )


def _refused(begun: Compiled, message: str, names: dict[Shape, str]) -> Compiled:
    needed, listed = hlo.memory_error(message)
    return dataclasses.replace(
        begun,
        peak=int(needed * hlo.GIB) if needed else None,
        buffers=_largest(_named(listed, names)) or begun.buffers,
        error=message.partition("\n")[0],
    )


def _largest(buffers: list[hlo.Buffer]) -> tuple[hlo.Buffer, ...]:
    return tuple(sorted(buffers, key=lambda buffer: -buffer.size)[:LARGEST])


def _names(state: TrainState, config: TrainConfig, rows_a_device: int) -> dict[Shape, str]:
    """What an array of a shape is, as far as its shape says: the compiler's own names know no layers."""
    names = {_key(_shape(leaf)): f"gradient, moment or copy of {name}" for name, leaf in flatten(state.model).items()}
    sizes = state.model.config
    kept = sizes.num_hidden_layers, rows_a_device, config.data.row_length, sizes.hidden_size
    return names | {_key(f"[{','.join(map(str, kept))}]"): "inputs of all layers, kept for the backward pass"}


def _named(buffers: list[hlo.Buffer], names: dict[Shape, str]) -> list[hlo.Buffer]:
    return [buffer._replace(name=names.get(_key(buffer.shape), buffer.name)) for buffer in buffers]


def _key(shape: str) -> Shape:
    # the compiler turns arrays round and leaves sides of 1 out.
    return tuple(sorted(int(size) for size in re.findall(r"\d+", shape.partition("[")[2]) if size != "1"))
