"""The key-value cache: a token at position p of its row lies in slot p, in every layer."""

import dataclasses

import jax
import jax.numpy as jnp

from uner_jax.model.config import LlamaConfig

# L layers, B rows, S slots, K kv heads, Dh head width, T new tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers.

    Because slot and position are one, a query at position p may see the slots up to p, and what lies
    behind (padding of a shorter row, a rejected draft) is never seen and simply overwritten.
    """

    keys_LBSKDh: jax.Array
    values_LBSKDh: jax.Array

    @property
    def slots(self) -> int:
        """The number of positions that the cache has room for."""
        return self.keys_LBSKDh.shape[2]

    def rows(self, rows_B: jax.Array, slots: int) -> "Cache":
        """A cache of the given rows, repeated or left out as listed, with that many slots."""

        def take(x_LBSKDh: jax.Array) -> jax.Array:
            kept = x_LBSKDh[:, rows_B, :slots]
            return jnp.pad(kept, ((0, 0), (0, 0), (0, slots - kept.shape[2]), (0, 0), (0, 0)))

        return Cache(take(self.keys_LBSKDh), take(self.values_LBSKDh))


def empty_cache(config: LlamaConfig, rows: int, slots: int, dtype: jnp.dtype) -> Cache:
    """A cache of zeros."""
    shape = (config.num_hidden_layers, rows, slots, config.num_key_value_heads, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
