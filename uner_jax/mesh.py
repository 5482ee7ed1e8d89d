"""The device mesh and the table that says which array axis lies on which mesh axis.

A layer names logical axes only ("embed", "heads", "batch"); this table maps them to the mesh's
three axes: `data` (copies of the model, each its own rows), `fsdp` (parameters cut over the embed
axis, rows too) and `tensor` (heads, mlp and vocabulary cut).
"""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uner_jax.records import InputError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axis or axes; None keeps an axis whole on every device."""

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"
    vocab: str | None = "tensor"
    head_dim: str | None = None
    layers: str | None = None
    norm: str | None = None
    rank: str | None = None


RULES = ShardingRules()


COORDINATES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start_distributed() -> None:
    """Join the processes of a run on several hosts, before any device is asked for; on one machine do nothing.

    TPU hosts and the tasks of a SLURM step find each other; elsewhere each process has the three variables of
    COORDINATES, for example 10.0.0.1:8476, 2 and 0. Raises InputError if only some of them are set.
    """
    given = {name: os.environ[name] for name in COORDINATES if os.environ.get(name)}
    if given:
        _check_coordinates(given)
        address, processes, process = (given[name] for name in COORDINATES)
        jax.distributed.initialize(address, int(processes), int(process))
    elif _on_slurm() or _on_tpu():
        jax.distributed.initialize()


def process_place() -> tuple[int, int]:
    """Which of how many processes this is, for work that they do apart: (0, 1) for one alone.

    From the variables of COORDINATES or of a SLURM step, without joining the others: a process that ends or dies
    would take them with it. TPU hosts find each other, and join. Raises InputError as `start_distributed` does.
    """
    given = {name: os.environ[name] for name in COORDINATES if os.environ.get(name)}
    if given:
        _check_coordinates(given)
        return int(given["JAX_PROCESS_ID"]), int(given["JAX_NUM_PROCESSES"])
    if _on_slurm():
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if _on_tpu() and not jax.distributed.is_initialized():
        start_distributed()
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def wait_for_others() -> None:
    """Wait until all processes that joined are here: the first one to leave would end the others."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        multihost_utils.sync_global_devices("done")


def _check_coordinates(given: dict[str, str]) -> None:
    missing = [name for name in COORDINATES if name not in given]
    if missing:
        raise InputError(f"{', '.join(given)} without {', '.join(missing)}: a process of several needs all three")
    processes, process = (given[name] for name in COORDINATES[1:])
    if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
        raise InputError(
            f"JAX_PROCESS_ID {process} and JAX_NUM_PROCESSES {processes}: expected a number from 0 and the count"
        )


def _on_slurm() -> bool:
    # inside srun only: a batch script by itself is one process, whatever the job was given.
    return "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def _on_tpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    chips = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return "tpu" in platforms and chips and importlib.util.find_spec("libtpu") is not None


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices, by default all there are; one of the sizes may be -1, for all that are left.

    Raises InputError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    count = len(devices)
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {count} device(s): "
            "the sizes must multiply to their number (one of them may be -1: what is left)"
        )
    # an axis of 8 on a TPU slice of 4 x 4 has to be cut out of both of its sides.
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def partition_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh_shape: dict[str, int]) -> P:
    """The PartitionSpec of an array of that shape with those logical axes.

    A mesh axis that does not divide its dimension is left out: that dimension stays whole, as with
    two key-value heads on tensor=4.
    """
    entries = []
    for size, axis in zip(shape, axes, strict=True):
        rule = getattr(RULES, axis) if axis else None
        names = (rule,) if isinstance(rule, str) else rule or ()
        divides = size % math.prod(mesh_shape[name] for name in names) == 0
        entries.append(rule if names and divides else None)
    return P(*entries)


def sharding_of(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
    """The sharding of an array of that shape with those logical axes on the mesh."""
    return NamedSharding(mesh, partition_spec(shape, axes, dict(mesh.shape)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tell the partitioner how `x` lies on the mesh of the context (`jax.set_mesh`); no mesh, no effect."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, axes, dict(mesh.shape)))
