"""Frozen kernels in fewer bits: int8 by output channel, int4 and nf4 in blocks of inputs (arXiv 2305.14314)."""

import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from uner_jax.mesh import constrain
from uner_jax.records import InputError

QuantisedKind = Literal["int8", "int4", "nf4"]

# Inputs that share a scale in the 4-bit kinds; where it does not divide them, the largest power of two that does.
BLOCK = 64

# What the 16 codes stand for, relative to the largest magnitude of a block. nf4: appendix E of the paper, the
# quantiles of a normal distribution; int4: evenly spaced, and code 0 is never used.
LEVELS: dict[str, tuple[float, ...]] = {
    "int4": tuple((code - 8) / 7 for code in range(16)),
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
}  # fmt: skip


class Quantised(nnx.Module):
    """A kernel, or a stack of kernels along a leading layer axis, as codes and float32 scales.

    `inputs` is how many leading axes of one kernel are contracted. The 4-bit kinds group and pack (two codes a byte,
    the first in the high bits) along the last of those.
    """

    def __init__(self, kernel_L: jax.Array, axes: tuple[str, ...], inputs: int, kind: QuantisedKind):
        self.kind = kind
        self.axes = axes
        self.inputs = inputs
        # a layer at a time: what lies between a kernel and its codes would be as large as all kernels.
        codes, scales = jax.lax.map(lambda kernel: _quantise(kernel.astype(jnp.float32), inputs, kind), kernel_L)
        self.codes = nnx.Variable(constrain(codes, "layers", *axes), axes=axes)
        self.scales = nnx.Variable(constrain(scales, "layers", *axes), axes=axes)

    def dequantised(self, dtype: jnp.dtype) -> jax.Array:
        """One layer's kernel."""
        codes, scales = self.codes[...], self.scales[...]
        if self.kind == "int8":
            return (codes.astype(jnp.float32) * scales).astype(dtype)
        axis = self.inputs - 1
        pairs = jnp.stack([codes >> 4, codes & 15], axis=axis + 1)
        count = 2 * codes.shape[axis]
        values = _look_up(_regroup(pairs, axis, count // scales.shape[axis]), LEVELS[self.kind])
        kernel = values * jnp.expand_dims(scales, axis + 1)
        return kernel.reshape(*codes.shape[:axis], count, *codes.shape[axis + 1 :]).astype(dtype)


def _quantise(kernel: jax.Array, inputs: int, kind: QuantisedKind) -> tuple[jax.Array, jax.Array]:
    if kind == "int8":
        scales = _nonzero(jnp.max(jnp.abs(kernel), axis=range(inputs), keepdims=True)) / 127
        return jnp.round(kernel / scales).astype(jnp.int8), scales
    axis = inputs - 1
    count = kernel.shape[axis]
    if count % 2:
        raise InputError(f"{kind} packs inputs in pairs; a kernel of shape {kernel.shape} has {count}: use int8")
    groups = kernel.reshape(*kernel.shape[:axis], -1, math.gcd(count, BLOCK), *kernel.shape[axis + 1 :])
    scales = _nonzero(jnp.max(jnp.abs(groups), axis=axis + 1))
    relative = groups / jnp.expand_dims(scales, axis + 1)
    levels = LEVELS[kind]
    # the number of midpoints below a value is the code of the level next to it.
    midpoints = ((low + high) / 2 for low, high in itertools.pairwise(levels))
    codes = sum(((relative > midpoint).astype(jnp.uint8) for midpoint in midpoints), jnp.zeros((), jnp.uint8))
    pairs = codes.reshape(*kernel.shape[:axis], count // 2, 2, *kernel.shape[axis + 1 :])
    first, second = jnp.moveaxis(pairs, axis + 1, 0)
    return (first << 4) | second, scales


def _nonzero(scales: jax.Array) -> jax.Array:
    return jnp.where(scales > 0, scales, jnp.ones_like(scales))


def _regroup(pairs: jax.Array, axis: int, block: int) -> jax.Array:
    """The codes that stand in pairs along `axis` and the next, in blocks along them."""
    return pairs.reshape(*pairs.shape[:axis], -1, block, *pairs.shape[axis + 2 :])


def _look_up(codes: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """The level of each code, by halving the table bit by bit: a gather from it would be slow on a TPU."""
    values = [jnp.float32(level) for level in levels]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]
