"""Keys and values that were read once: prefixes that rows share, and what each row has of its own."""

import dataclasses

import jax
import jax.numpy as jnp

# L layers, N rows of any kind, C prefixes, R rows, T tokens, K kv heads, S slots (one a token), Dh head width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of some layers, heads before slots: a product over a head's slots needs no transposition.

    Of a row that is being written, the token that stands `n` places behind the end of its prefix lies in slot n: what
    lies behind (a rejected draft, say) is never seen and simply overwritten.
    """

    keys_LNKSDh: jax.Array
    values_LNKSDh: jax.Array

    @property
    def slots(self) -> int:
        """The number of tokens that a row has room for."""
        return self.keys_LNKSDh.shape[3]

    def written(
        self, layer: jax.Array, slots_RT: jax.Array, k_RTKDh: jax.Array, v_RTKDh: jax.Array
    ) -> tuple["KeyValues", "KeyValues"]:
        """With those of T more tokens of each row in a layer: all layers, and this one without the axis of layers.

        A token without a slot is not kept.
        """
        places = layer, jnp.arange(slots_RT.shape[0], dtype=slots_RT.dtype)[:, None], slice(None), slots_RT
        keys = self.keys_LNKSDh.at[places].set(k_RTKDh.astype(self.keys_LNKSDh.dtype), mode="drop")
        values = self.values_LNKSDh.at[places].set(v_RTKDh.astype(self.values_LNKSDh.dtype), mode="drop")
        return KeyValues(keys, values), KeyValues(keys[layer], values[layer])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seating:
    """Which prefix each row of a pool stands behind: up to `sharers` rows share one.

    Prefix c has `lengths_C[c]` tokens. Row r follows prefix `owners_R[r]`, as the `seats_R[r]`th of those that do; the
    owner of a row that nobody writes is C or more.
    """

    lengths_C: jax.Array
    owners_R: jax.Array
    seats_R: jax.Array
    sharers: int = dataclasses.field(metadata={"static": True})

    def own_slots(self, positions_RT: jax.Array) -> jax.Array:
        """The slots of tokens at these positions of the whole text, prefix and all."""
        return positions_RT - self.lengths_C.at[self.owners_R].get(mode="clip")[:, None]
