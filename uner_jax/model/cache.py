"""Keys and values that were read once: prefixes that rows share, and what each row has of its own."""

import dataclasses

import jax
import jax.numpy as jnp

from uner_jax.model.config import LlamaConfig

# L layers, N rows of any kind, C prefixes, R rows, K kv heads, S slots (one a token), Dh head width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of all layers, heads before slots: a product over a head's slots needs no transposition."""

    keys_LNKSDh: jax.Array
    values_LNKSDh: jax.Array

    @property
    def slots(self) -> int:
        """The number of tokens that a row has room for."""
        return self.keys_LNKSDh.shape[3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows that are being written, each behind a prefix that it shares with up to `sharers` of them.

    The token that stands `n` places behind the end of its row's prefix lies in slot n of the row, in every layer:
    what lies behind (a rejected draft, say) is never seen and simply overwritten. Row r follows prefix
    `owners_R[r]`, as the `seats_R[r]`th of those that do; the owner of a row that nobody writes is C or more.
    """

    prefixes: KeyValues
    lengths_C: jax.Array
    rows: KeyValues
    owners_R: jax.Array
    seats_R: jax.Array
    sharers: int = dataclasses.field(metadata={"static": True})

    def own_slots(self, positions_RT: jax.Array) -> jax.Array:
        """The slots of tokens at these positions of the whole text, prefix and all."""
        return positions_RT - self.lengths_C.at[self.owners_R].get(mode="clip")[:, None]


def empty_key_values(config: LlamaConfig, rows: int, slots: int, dtype: jnp.dtype) -> KeyValues:
    """Zeros."""
    shape = config.num_hidden_layers, rows, config.num_key_value_heads, slots, config.head_dim
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
