"""The device mesh and the table that says which array axis lies on which mesh axis.

A layer names logical axes only ("embed", "heads", "batch"); this table maps them to the mesh's
three axes: `data` (copies of the model, each its own rows), `fsdp` (parameters cut over the embed
axis, rows too) and `tensor` (heads, mlp and vocabulary cut).
"""

import dataclasses
import math

import jax
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


RULES = ShardingRules()


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; one of the sizes may be -1, for all the devices that are left.

    Raises InputError if the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    count = jax.device_count()
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {count} device(s): "
            "the sizes must multiply to their number (one of them may be -1: what is left)"
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


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
