"""LLaMA: an embedding, a scanned stack of blocks, a norm and a head (arXiv 2302.13971)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from uner_jax.mesh import constrain
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention
from uner_jax.model.layers import Block, RMSNorm, normal_param

# B batch, T tokens, D model width, V vocabulary, L layers

Remat = Literal["none", "full", "dots", "qkv", "offload"]
# what a scan over the blocks takes of each: the block, and whether it rotates (see `turned`)
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


def turned(positions_BT: jax.Array, rotates: jax.Array | None) -> jax.Array:
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
            return block(x_BTD, turned(positions_BT, rotates), segment_ids_BT, self.attention), None

        body = step if self.remat == "none" else jax.checkpoint(step, policy=_policy(self.remat))
        x_BTD, _ = jax.lax.scan(body, self.embed(tokens_BT), (self.layers, self.rotating()))
        return self.norm(x_BTD)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Project `hidden` of any leading shape to the vocabulary, in float32."""
        table_VD = constrain(self.output_table.astype(hidden_BTD.dtype), "vocab", None)
        return jnp.einsum("...d,vd->...v", hidden_BTD, table_VD, preferred_element_type=jnp.float32)

    @property
    def output_table(self) -> jax.Array:
        """The rows that hidden states are compared with, one a word of the vocabulary: (V, D)."""
        return (self.embedding if self.head is None else self.head)[...]

    def rotating(self) -> jax.Array | None:
        """1 for each layer with rotary positions and 0 for each without; None if all have them."""
        without = self.config.layers_without_rope
        if not without:
            return None
        return jnp.asarray([layer not in without for layer in range(self.config.num_hidden_layers)], jnp.int32)

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """What the first block takes: (B, T, D)."""
        # the table is gathered over fsdp first: cut over both axes, the lookup makes the partitioner copy it all.
        table_VD = constrain(self.embedding[...].astype(self.compute_dtype), "vocab", None)
        return constrain(jnp.take(table_VD, tokens_BT, axis=0), "batch", None, None)

    def _check_length(self, length: int) -> None:
        if length > self.config.longest_row:
            raise ValueError(f"{length} tokens exceed {self.config.row_limit}")
