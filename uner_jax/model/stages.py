"""A model as a chain of stages, a few of its layers each: what extraction runs.

On an accelerator all layers are one stage, a loop over their stack. On a CPU every layer is a stage of its own: XLA's
loop there copies a layer's weights out of their stack before it computes with them, which for a few tokens takes
as long as the products, and bfloat16 arrays it slices and updates by way of a float32 copy of the whole.
"""

from collections.abc import Sequence
from copy import copy
from functools import partial

import jax
import jax.numpy as jnp

from uner_jax.mesh import constrain
from uner_jax.model.attention import branching_attention, shared_attention
from uner_jax.model.cache import KeyValues, Seating
from uner_jax.model.layers import Block
from uner_jax.model.llama import Item, Llama, turned

# B batch, R rows of a pool, T tokens, D model width, L layers of a stage

# The stacked blocks of a stage, and which of them rotate (see `Llama.rotating`).
Stage = tuple[Block, jax.Array | None]


class Stages:
    """A model that reads trees and extends pools; what it keeps of keys and values is a list of one a stage.

    `ends` is the model without its layers: what embeds, and what projects to the vocabulary. `kept_dtype` is the
    dtype of keys and values: on a CPU float32, in which it updates them in place. Layers of a stage of their own are
    copies: whoever keeps the model has its weights twice. How many layers a stage has depends on the platform, unless a
    number is given, as tests do.
    """

    def __init__(self, model: Llama, layers_of_a_stage: int | None = None):
        on_cpu = jax.default_backend() == "cpu"
        layers = model.config.num_hidden_layers
        self.config = model.config
        self.layers_of_a_stage = layers_of_a_stage or (1 if on_cpu else layers)
        self.kept_dtype = jnp.dtype(jnp.float32) if on_cpu else model.compute_dtype
        self.ends = copy(model)
        del self.ends.layers
        whole = model.layers, model.rotating()
        starts = range(0, layers, self.layers_of_a_stage)
        self._stages: list[Stage] = [whole] if len(starts) == 1 else [self._part(whole, start) for start in starts]

    def _part(self, whole: Stage, start: int) -> Stage:
        return jax.tree.map(lambda x_L: x_L[start : start + self.layers_of_a_stage], whole)

    def read(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, trees_BT: jax.Array, branches_BT: jax.Array
    ) -> tuple[jax.Array, list[KeyValues]]:
        """Read rows of trees (see `branching_attention`): (B, T, D) for `Llama.logits`, and all keys and values.

        Positions are counted along the root, on along a tree's trunk and on along each of its branches.
        """
        x_BTD, kept = embed(self.ends, tokens_BT), []
        for stage in self._stages:
            x_BTD, key_values = read_stage(stage, x_BTD, (positions_BT, trees_BT, branches_BT), self.kept_dtype)
            kept.append(key_values)
        return x_BTD, kept

    def extend(
        self,
        tokens_RT: jax.Array,
        positions_RT: jax.Array,
        seating: Seating,
        prefixes: Sequence[KeyValues],
        rows: Sequence[KeyValues],
    ) -> tuple[jax.Array, list[KeyValues]]:
        """Read T more tokens of each row of a pool: (R, T, D) for `Llama.logits`, and the rows with them.

        The positions of a row are contiguous and follow those that it has; a token without a slot is not kept. The
        rows that are given are donated.
        """
        x_RTD, grown = embed(self.ends, tokens_RT), []
        for stage, prefix, held in zip(self._stages, prefixes, rows, strict=True):
            x_RTD, held = extend_stage(stage, x_RTD, positions_RT, seating, prefix, held)
            grown.append(held)
        return x_RTD, grown

    def empty(self, rows: int, slots: int) -> list[KeyValues]:
        """Zeros for so many rows, a stage after the other."""
        heads, width = self.config.num_key_value_heads, self.config.head_dim
        sizes = [stage[0].attention_norm.scale[...].shape[0] for stage in self._stages]
        zeros = partial(jnp.zeros, dtype=self.kept_dtype)
        return [KeyValues(*(zeros((size, rows, heads, slots, width)) for _ in range(2))) for size in sizes]


@jax.jit
def embed(ends: Llama, tokens_BT: jax.Array) -> jax.Array:
    """What the first layer takes: (B, T, D)."""
    return ends.embed(tokens_BT)


@partial(jax.jit, static_argnames="dtype")
def read_stage(
    stage: Stage, x_BTD: jax.Array, places: tuple[jax.Array, jax.Array, jax.Array], dtype: jnp.dtype
) -> tuple[jax.Array, KeyValues]:
    """A stage's part of `Stages.read`; `places` are positions, trees and branches."""
    positions_BT, trees_BT, branches_BT = places

    def step(x_BTD: jax.Array, item: Item) -> tuple[jax.Array, KeyValues]:
        block, rotates = item
        q, k, v = block.attention.project(block.attention_norm(x_BTD), turned(positions_BT, rotates))
        mixed_BTHDh = branching_attention(q, k, v, trees_BT, branches_BT)
        kept = (constrain(x.swapaxes(1, 2).astype(dtype), "batch", "kv_heads", None, None) for x in (k, v))
        return block.finish(x_BTD, mixed_BTHDh), KeyValues(*kept)

    return jax.lax.scan(step, x_BTD, stage)


@partial(jax.jit, donate_argnames="rows")
def extend_stage(
    stage: Stage,
    x_RTD: jax.Array,
    positions_RT: jax.Array,
    seating: Seating,
    prefixes: KeyValues,
    rows: KeyValues,
) -> tuple[jax.Array, KeyValues]:
    """A stage's part of `Stages.extend`."""
    slots_RT = seating.own_slots(positions_RT)

    def step(carry: tuple[jax.Array, KeyValues], item: tuple):
        (x_RTD, rows), ((block, rotates), layer, prefix) = carry, item
        q, k, v = block.attention.project(block.attention_norm(x_RTD), turned(positions_RT, rotates))
        rows, own = rows.written(layer, slots_RT, k, v)
        mixed_RTHDh = shared_attention(q, prefix, own, seating, slots_RT)
        return (block.finish(x_RTD, mixed_RTHDh), rows), None

    layers_L = jnp.arange(rows.keys_LNKSDh.shape[0], dtype=slots_RT.dtype)
    (x_RTD, rows), _ = jax.lax.scan(step, (x_RTD, rows), (stage, layers_L, prefixes))
    return x_RTD, rows
