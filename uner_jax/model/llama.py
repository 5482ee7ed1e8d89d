"""LLaMA: an embedding, a scanned stack of blocks, a norm and a head (arXiv 2302.13971)."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from uner_jax.mesh import constrain
from uner_jax.model.attention import branching_attention, shared_attention
from uner_jax.model.cache import KeyValues, Pool
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention
from uner_jax.model.layers import Block, RMSNorm, normal_param

# B batch, R rows of a pool, T tokens, D model width, V vocabulary, L layers

Remat = Literal["none", "full", "dots", "qkv", "offload"]
# what a scan over the blocks takes of each: the block, and whether it rotates (see `_turned`)
Item = tuple[Block, jax.Array | None]

REFERENCE = Attention()


def _policy(remat: Remat) -> Callable[..., bool] | None:
    """What `jax.checkpoint` keeps of a block; its arguments it always does."""
    if remat == "dots":
        return jax.checkpoint_policies.save_only_these_names("projection")
    if remat == "qkv":
        return jax.checkpoint_policies.save_only_these_names("qkv")
    if remat == "offload":
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["block_input"],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return None


def _turned(positions_BT: jax.Array, rotates: jax.Array | None) -> jax.Array:
    """The positions that a layer turns queries and keys by: in one without rotary positions 0, which turns nothing."""
    return positions_BT if rotates is None else positions_BT * rotates.astype(positions_BT.dtype)


class Llama(nnx.Module):
    """A LLaMA whose blocks are stacked along a leading layer axis.

    Parameters are float32 from the initialiser (`load_model` may choose another dtype);
    `compute_dtype` is the dtype of activations and of the matrix products, `attention` the kernel over whole
    rows. `remat` says what a block keeps for its backward pass, which computes the rest again: "none" all,
    "full" its input only, "dots" the results of its matrix products, "qkv" its input, queries, keys and values, and
    "offload" its input, in the host's memory.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        compute_dtype: jnp.dtype | type = jnp.float32,
        remat: Remat = "none",
        attention: Attention = REFERENCE,
    ):
        self.config = config
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.remat = remat
        self.attention = attention
        table = (config.vocab_size, config.hidden_size)
        self.embedding = normal_param(rngs, table, ("vocab", "embed"))
        keys_L = jax.random.split(rngs.params(), config.num_hidden_layers)
        self.layers = jax.vmap(lambda key: Block(config, nnx.Rngs(key)))(keys_L)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else normal_param(rngs, table, ("vocab", "embed"))

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the next token, float32 of shape (B, T, V).

        tokens int32. `positions_BT`, from 0, default to the place in the row; `segment_ids_BT` keep
        apart the texts that are packed into one row: a token sees its own segment only, and what is
        before it. Raises ValueError if T exceeds `config.longest_row`.
        """
        return self.logits(self.hidden(tokens_BT, positions_BT, segment_ids_BT))

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> jax.Array:
        """The normalised output of the last block, (B, T, D): what `logits` takes."""
        self._check_length(tokens_BT.shape[1])
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)

        def step(x_BTD: jax.Array, item: Item) -> tuple[jax.Array, None]:
            block, rotates = item
            return block(x_BTD, _turned(positions_BT, rotates), segment_ids_BT, self.attention), None

        body = step if self.remat == "none" else jax.checkpoint(step, policy=_policy(self.remat))
        x_BTD, _ = jax.lax.scan(body, self._embed(tokens_BT), (self.layers, self._rotating()))
        return self.norm(x_BTD)

    def read(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, trees_BT: jax.Array, branches_BT: jax.Array
    ) -> tuple[jax.Array, KeyValues]:
        """Read rows of trees (see `branching_attention`): (B, T, D) for `logits`, and all keys and values.

        Positions are counted along a tree's trunk and on along each of its branches.
        """

        def step(x_BTD: jax.Array, item: Item) -> tuple[jax.Array, KeyValues]:
            block, rotates = item
            q, k, v = block.attention.project(block.attention_norm(x_BTD), _turned(positions_BT, rotates))
            mixed_BTHDh = branching_attention(q, k, v, trees_BT, branches_BT)
            kept = (constrain(x.swapaxes(1, 2), "batch", "kv_heads", None, None) for x in (k, v))
            return block.finish(x_BTD, mixed_BTHDh), KeyValues(*kept)

        x_BTD, key_values = jax.lax.scan(step, self._embed(tokens_BT), (self.layers, self._rotating()))
        return self.norm(x_BTD), key_values

    def extend(self, tokens_RT: jax.Array, positions_RT: jax.Array, pool: Pool) -> tuple[jax.Array, Pool]:
        """Read T more tokens of each row of a pool; returns (R, T, D) for `logits`, and the pool with them.

        The positions of a row are contiguous and follow those that it has; a token without a slot is not kept.
        """
        slots_RT = pool.own_slots(positions_RT)
        rows_R1 = jnp.arange(tokens_RT.shape[0], dtype=slots_RT.dtype)[:, None]

        def step(carry: tuple[jax.Array, Pool], item: tuple):
            (x_RTD, pool), (block, rotates, layer, prefix) = carry, item
            q, k, v = block.attention.project(block.attention_norm(x_RTD), _turned(positions_RT, rotates))
            keys = pool.rows.keys_LNKSDh.at[layer, rows_R1, :, slots_RT].set(k, mode="drop")
            values = pool.rows.values_LNKSDh.at[layer, rows_R1, :, slots_RT].set(v, mode="drop")
            pool = dataclasses.replace(pool, rows=KeyValues(keys, values))
            mixed_RTHDh = shared_attention(q, pool, layer, prefix, slots_RT)
            return (block.finish(x_RTD, mixed_RTHDh), pool), None

        layers_L = jnp.arange(self.config.num_hidden_layers, dtype=slots_RT.dtype)
        prefixes = pool.prefixes.keys_LNKSDh, pool.prefixes.values_LNKSDh
        carry = self._embed(tokens_RT), pool
        (x_RTD, pool), _ = jax.lax.scan(step, carry, (self.layers, self._rotating(), layers_L, prefixes))
        return self.norm(x_RTD), pool

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Project `hidden` of any leading shape to the vocabulary, in float32."""
        table_VD = constrain(self.output_table.astype(hidden_BTD.dtype), "vocab", None)
        return jnp.einsum("...d,vd->...v", hidden_BTD, table_VD, preferred_element_type=jnp.float32)

    @property
    def output_table(self) -> jax.Array:
        """The rows that hidden states are compared with, one a word of the vocabulary: (V, D)."""
        return (self.embedding if self.head is None else self.head)[...]

    def _rotating(self) -> jax.Array | None:
        """1 for each layer with rotary positions and 0 for each without; None if all have them."""
        without = self.config.layers_without_rope
        if not without:
            return None
        return jnp.asarray([layer not in without for layer in range(self.config.num_hidden_layers)], jnp.int32)

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        # the table is gathered over fsdp first: cut over both axes, the lookup makes the partitioner copy it all.
        table_VD = constrain(self.embedding[...].astype(self.compute_dtype), "vocab", None)
        return constrain(jnp.take(table_VD, tokens_BT, axis=0), "batch", None, None)

    def _check_length(self, length: int) -> None:
        if length > self.config.longest_row:
            raise ValueError(f"{length} tokens exceed {self.config.row_limit}")
