"""Softmax attention with grouped heads: the reference, for every platform."""

import jax
import jax.numpy as jnp

# B batch, T queries, S keys and values, H query heads, K kv heads, G = H // K, Dh head width

# Long rows are attended to in blocks of queries: a block sees no key behind its end, which halves the
# work, and its scores stay in a CPU's cache.
BLOCK = 128


def causal_attention(
    q_BTHDh: jax.Array, k_BTKDh: jax.Array, v_BTKDh: jax.Array, segment_ids_BT: jax.Array | None = None
) -> jax.Array:
    """Attention of each token to itself and those before it, of its own segment: (B, T, H, Dh)."""
    length = q_BTHDh.shape[1]
    order_T = jnp.arange(length)
    mixed = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        mask = order_T[start:end, None] >= order_T[:end]
        mask_BTS = jnp.broadcast_to(mask, (q_BTHDh.shape[0], *mask.shape))
        if segment_ids_BT is not None:
            mask_BTS &= segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, :end]
        mixed.append(masked_attention(q_BTHDh[:, start:end], k_BTKDh[:, :end], v_BTKDh[:, :end], mask_BTS))
    return jnp.concatenate(mixed, axis=1)


def masked_attention(q_BTHDh: jax.Array, k_BSKDh: jax.Array, v_BSKDh: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Attention where the mask is true, with the softmax in float32: (B, T, H, Dh) in the dtype of q.

    Every query must see at least one key.
    """
    batch, length, heads, width = q_BTHDh.shape
    kv_heads = k_BSKDh.shape[2]
    q_BTKGDh = (q_BTHDh * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores_BKGTS = jnp.einsum("btkgd,bskd->bkgts", q_BTKGDh, k_BSKDh, preferred_element_type=jnp.float32)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTHDh.dtype)
    mixed_BTKGDh = jnp.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKDh, preferred_element_type=jnp.float32)
    return mixed_BTKGDh.reshape(q_BTHDh.shape).astype(q_BTHDh.dtype)
