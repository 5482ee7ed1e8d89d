"""Rotary position embeddings in float32, half-split as Hugging Face lays them out (arXiv 2104.09864)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.model.config import LlamaConfig, RopeScaling

# B batch, T tokens, N heads of either kind, Dh head width


def frequencies(config: LlamaConfig) -> np.ndarray:
    """The angle a position, in radians, of each pair of channels: float32 of shape (Dh / 2,)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    if config.rope_scaling is None:
        return plain
    if config.rope_scaling.kind == "linear":
        return (plain / np.float32(config.rope_scaling.factor)).astype(np.float32)
    return _llama3(plain, config.rope_scaling)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Wavelengths longer than the trained context are stretched, short ones kept, blended between."""
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_max_position_embeddings / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * plain / scaling.factor + blend * plain).astype(np.float32)


def rotate(x_BTNDh: jax.Array, positions_BT: jax.Array, config: LlamaConfig) -> jax.Array:
    """Turn each pair of channels by its angle; positions are counted in tokens from 0.

    Angles are float32 whatever the dtype of `x`: bfloat16 rounds 257 to 256, and sin(257) is not sin(256).
    """
    angles_BT1F = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies(config)
    cos, sin = jnp.cos(angles_BT1F), jnp.sin(angles_BT1F)
    first, second = jnp.split(x_BTNDh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNDh.dtype)
