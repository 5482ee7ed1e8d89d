"""Cross-entropy over a large vocabulary without its logits: a chunk of tokens at a time, gradients on the way forward.

The logits of all scored tokens would be the largest array of a step. Here a chunk's logits are made, give the
loss, its gradients to the hidden states and to the table, and are forgotten; the backward pass only scales. The
vocabulary may be cut over the mesh axis `tensor`, the rows over `data` and `fsdp`; the sums over devices are made
once, at the end.

Where the table is cut over `fsdp`, no device ever holds the whole gradient of it, which in float32 is larger than
the gathered table: the chunks keep the gradients to their logits, of which slices of the vocabulary are made.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from uner_jax.mesh import partition_spec

# B rows, A scored tokens of a row, C tokens of a chunk, N chunks, D model width, V vocabulary, S words of a slice;
# in `_local` those of one device

CHUNK = 512
# Words of the vocabulary whose rows of the table's gradient a device makes at a time, where the table is cut.
SLICE = 2048


@jax.custom_vjp
def cross_entropy_sum(
    hidden_BAD: jax.Array, table_VD: jax.Array, targets_BA: jax.Array, weights_BA: jax.Array
) -> jax.Array:
    """The weighted sum, in nats, of -log softmax(hidden table^T)[target]: a float32 scalar.

    `table_VD` is float32 and is cast to the dtype of the hidden states for the products, which are summed in
    float32. Differentiable with respect to both; targets int32 and weights float32 are constants.
    """
    return _over_mesh(False, hidden_BAD, table_VD, targets_BA, weights_BA)[0]


def _forward(hidden_BAD: jax.Array, table_VD: jax.Array, targets_BA: jax.Array, weights_BA: jax.Array):
    loss, *gradients = _over_mesh(True, hidden_BAD, table_VD, targets_BA, weights_BA)
    return loss, gradients


def _backward(gradients: list[jax.Array], g: jax.Array):
    hidden_BAD, table_VD = gradients
    return (g * hidden_BAD.astype(g.dtype)).astype(hidden_BAD.dtype), g * table_VD, None, None


cross_entropy_sum.defvjp(_forward, _backward)


class _Axes(NamedTuple):
    """Mesh axes over which a device's part must be summed: none without a mesh."""

    rows: tuple[str, ...] = ()
    vocab: str | None = None
    embed: str | None = None

    def sum_rows(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, self.rows) if self.rows else x

    def sum_vocab(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, self.vocab) if self.vocab else x

    def max_vocab(self, x: jax.Array) -> jax.Array:
        return jax.lax.pmax(x, self.vocab) if self.vocab else x

    def sum_table(self, x_VD: jax.Array) -> jax.Array:
        """The table's gradient, or some of its rows, summed over the rows and cut as the table is."""
        if self.embed is None:
            return self.sum_rows(x_VD)
        rest = tuple(axis for axis in self.rows if axis != self.embed)
        cut = jax.lax.psum_scatter(x_VD, self.embed, scatter_dimension=1, tiled=True)
        return jax.lax.psum(cut, rest) if rest else cut


def _over_mesh(gradients: bool, hidden_BAD, table_VD, targets_BA, weights_BA) -> tuple[jax.Array, ...]:
    """`_local` on every device's part of the arrays, under the mesh of the context if there is one."""
    table = table_VD.astype(hidden_BAD.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _local(_Axes(), gradients, hidden_BAD, table, targets_BA, weights_BA)
    sizes = dict(mesh.shape)
    rows = partition_spec(targets_BA.shape, ("batch", None), sizes)
    vocab, embed = partition_spec(table_VD.shape, ("vocab", "embed"), sizes)
    axes = _Axes(rows[0] or (), vocab, embed if embed in (rows[0] or ()) else None)
    hidden = P(rows[0], None, None)
    return jax.shard_map(
        partial(_local, axes, gradients),
        mesh=mesh,
        in_specs=(hidden, P(vocab, None), rows, rows),
        out_specs=(P(), hidden, P(vocab, axes.embed)) if gradients else (P(),),
        check_vma=False,
    )(hidden_BAD, table, targets_BA, weights_BA)


def _local(axes: _Axes, gradients: bool, hidden_BAD, table_VD, targets_BA, weights_BA) -> tuple[jax.Array, ...]:
    """One device's part of the loss and, if asked for, of its gradients to the hidden states and to the table."""
    width, vocab = hidden_BAD.shape[-1], table_VD.shape[0]
    count = targets_BA.size
    chunk = min(CHUNK, count)
    padding = -count % chunk
    first = jax.lax.axis_index(axes.vocab) * vocab if axes.vocab else 0
    # with very many scored tokens it is the gradients to the logits that are larger.
    kept_bytes, whole_bytes = (count + padding) * vocab * hidden_BAD.dtype.itemsize, table_VD.size * 4
    sliced = gradients and axes.embed is not None and kept_bytes < whole_bytes

    def chunks(x: jax.Array) -> jax.Array:
        flat = x.reshape(count, *x.shape[2:])
        return jnp.pad(flat, ((0, padding), *((0, 0),) * (flat.ndim - 1))).reshape(-1, chunk, *flat.shape[1:])

    def step(sums: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array, jax.Array]):
        hidden_CD, targets_C, weights_C = part
        logits_CV = _dot(hidden_CD, table_VD, 1, 1)
        largest_C = axes.max_vocab(jnp.max(logits_CV, axis=1))
        total_C = axes.sum_vocab(jnp.sum(jnp.exp(logits_CV - largest_C[:, None]), axis=1))
        log_sum_C = largest_C + jnp.log(total_C)
        # by comparison: a gather would collect a vocabulary that is cut.
        is_target_CV = (targets_C - first)[:, None] == jnp.arange(vocab, dtype=targets_C.dtype)
        target_C = axes.sum_vocab(jnp.sum(jnp.where(is_target_CV, logits_CV, jnp.zeros_like(logits_CV)), axis=1))
        loss = sums[0] + jnp.sum((log_sum_C - target_C) * weights_C)
        if not gradients:
            return (loss, sums[1]), None
        weighted_CV = (jnp.exp(logits_CV - log_sum_C[:, None]) - is_target_CV.astype(jnp.float32)) * weights_C[:, None]
        weighted_CV = weighted_CV.astype(hidden_CD.dtype)
        hidden_gradient_CD = _dot(weighted_CV, table_VD, 1, 0)
        if sliced:
            return (loss, sums[1]), (hidden_gradient_CD, weighted_CV)
        table_gradient_VD = sums[1] + _dot(weighted_CV, hidden_CD, 0, 0)
        return (loss, table_gradient_VD), (hidden_gradient_CD, None)

    whole = table_VD.shape if gradients and not sliced else ()
    parts = chunks(hidden_BAD), chunks(targets_BA), chunks(weights_BA)
    start = jnp.zeros((), jnp.float32), jnp.zeros(whole, jnp.float32)
    (loss, table_gradient), made = jax.lax.scan(step, start, parts)
    # the same on every device of `vocab`, so only the rows are summed.
    loss = axes.sum_rows(loss)
    if not gradients:
        return (loss,)
    hidden_gradient, weighted_NCV = made
    hidden_BAD = hidden_gradient.reshape(-1, width)[:count].reshape(hidden_BAD.shape).astype(hidden_BAD.dtype)
    table = _by_slices(axes, weighted_NCV, parts[0]) if sliced else axes.sum_table(table_gradient)
    return loss, axes.sum_vocab(hidden_BAD), table


def _by_slices(axes: _Axes, weighted_NCV: jax.Array, hidden_NCD: jax.Array) -> jax.Array:
    """This device's part of the table's gradient: a slice of the vocabulary after the other, summed and cut."""
    vocab, width = weighted_NCV.shape[-1], hidden_NCD.shape[-1]
    hidden_CD = hidden_NCD.reshape(-1, width)
    size = min(SLICE, vocab)
    weighted_CV = jnp.pad(weighted_NCV.reshape(-1, vocab), ((0, 0), (0, -vocab % size)))

    def of_slice(first: jax.Array) -> jax.Array:
        weighted_CS = jax.lax.dynamic_slice_in_dim(weighted_CV, first, size, axis=1)
        return axes.sum_table(_dot(weighted_CS, hidden_CD, 0, 0))

    slices = jax.lax.map(of_slice, jnp.arange(0, vocab, size))
    return slices.reshape(-1, slices.shape[-1])[:vocab]


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
