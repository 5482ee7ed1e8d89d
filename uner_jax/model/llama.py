"""LLaMA: an embedding, a scanned stack of blocks, a norm and a head (arXiv 2302.13971)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from uner_jax.mesh import constrain
from uner_jax.model.attention import masked_attention
from uner_jax.model.cache import Cache
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention
from uner_jax.model.layers import Block, RMSNorm, normal_param

# B batch, T tokens, S cache slots, D model width, V vocabulary, L layers

Remat = Literal["none", "full", "dots", "qkv", "offload"]


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
        self.norm = RMSNorm(config)
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
        before it. Raises ValueError if T exceeds `max_position_embeddings`.
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

        def step(x_BTD: jax.Array, block: Block) -> tuple[jax.Array, None]:
            return block(x_BTD, positions_BT, segment_ids_BT, self.attention), None

        body = step if self.remat == "none" else jax.checkpoint(step, policy=_policy(self.remat))
        x_BTD, _ = jax.lax.scan(body, self._embed(tokens_BT), self.layers)
        return self.norm(x_BTD)

    def extend(self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Read T more tokens of each row into the cache; returns (B, T, D) for `logits`, and the cache.

        The positions of a row are contiguous and follow those that it has in the cache; tokens that pad
        a row follow its last real one, and are overwritten by what comes next.
        """
        self._check_length(cache.slots)
        mask_BTS = positions_BT[:, :, None] >= jnp.arange(cache.slots, dtype=positions_BT.dtype)
        rows_B1 = jnp.arange(tokens_BT.shape[0], dtype=positions_BT.dtype)[:, None]

        def step(carry: tuple[jax.Array, Cache], item: tuple[Block, jax.Array]):
            (x_BTD, cache), (block, layer) = carry, item
            q, k, v = block.attention.project(block.attention_norm(x_BTD), positions_BT)
            # "drop": a padding token may stand beyond the last slot.
            keys = cache.keys_LBSKDh.at[layer, rows_B1, positions_BT].set(k, mode="drop")
            values = cache.values_LBSKDh.at[layer, rows_B1, positions_BT].set(v, mode="drop")
            mixed_BTHDh = masked_attention(q, keys[layer], values[layer], mask_BTS)
            return (block.finish(x_BTD, mixed_BTHDh), Cache(keys, values)), None

        layers_L = jnp.arange(self.config.num_hidden_layers, dtype=positions_BT.dtype)
        (x_BTD, cache), _ = jax.lax.scan(step, (self._embed(tokens_BT), cache), (self.layers, layers_L))
        return self.norm(x_BTD), cache

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Project `hidden` of any leading shape to the vocabulary, in float32."""
        table_VD = constrain(self.output_table.astype(hidden_BTD.dtype), "vocab", None)
        return jnp.einsum("...d,vd->...v", hidden_BTD, table_VD, preferred_element_type=jnp.float32)

    @property
    def output_table(self) -> jax.Array:
        """The rows that hidden states are compared with, one a word of the vocabulary: (V, D)."""
        return (self.embedding if self.head is None else self.head)[...]

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        # the table is gathered over fsdp first: cut over both axes, the lookup makes the partitioner copy it all.
        table_VD = constrain(self.embedding[...].astype(self.compute_dtype), "vocab", None)
        return constrain(jnp.take(table_VD, tokens_BT, axis=0), "batch", None, None)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise ValueError(f"{length} tokens exceed max_position_embeddings {self.config.max_position_embeddings}")
