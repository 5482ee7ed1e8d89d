"""Softmax attention with grouped heads: the reference, for every platform."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uner_jax.model.cache import Pool

# B batch, R rows, C prefixes, W sharers of one, P slots of a prefix, T queries, S keys and values,
# H query heads, K kv heads, G = H // K, Dh head width

# Long rows are attended to in blocks of queries: a block sees no key behind its end, which halves the
# work, and its scores stay in a CPU's cache.
BLOCK = 128


def causal_attention(
    q_BTHDh: jax.Array, k_BTKDh: jax.Array, v_BTKDh: jax.Array, segment_ids_BT: jax.Array | None = None
) -> jax.Array:
    """Attention of each token to itself and those before it, of its own segment: (B, T, H, Dh)."""

    def together(queries: slice, keys: slice) -> jax.Array | None:
        if segment_ids_BT is None:
            return None
        return segment_ids_BT[:, queries, None] == segment_ids_BT[:, None, keys]

    return _in_blocks(q_BTHDh, k_BTKDh, v_BTKDh, together)


def branching_attention(
    q_BTHDh: jax.Array, k_BTKDh: jax.Array, v_BTKDh: jax.Array, trees_BT: jax.Array, branches_BT: jax.Array
) -> jax.Array:
    """Attention in rows of trees, each a trunk (branch 0) with branches behind it: (B, T, H, Dh).

    A token sees itself and those before it, of its own tree: the trunk, and its own branch.
    """

    def together(queries: slice, keys: slice) -> jax.Array:
        tree = trees_BT[:, queries, None] == trees_BT[:, None, keys]
        branch_B1S = branches_BT[:, None, keys]
        return tree & ((branch_B1S == 0) | (branches_BT[:, queries, None] == branch_B1S))

    return _in_blocks(q_BTHDh, k_BTKDh, v_BTKDh, together)


def _in_blocks(
    q_BTHDh: jax.Array,
    k_BTKDh: jax.Array,
    v_BTKDh: jax.Array,
    together: Callable[[slice, slice], jax.Array | None],
) -> jax.Array:
    """Attention of each token to itself and those before it that are `together` with it."""
    length = q_BTHDh.shape[1]
    order_T = jnp.arange(length)
    mixed = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        mask = order_T[start:end, None] >= order_T[:end]
        mask_BTS = jnp.broadcast_to(mask, (q_BTHDh.shape[0], *mask.shape))
        allowed_BTS = together(slice(start, end), slice(end))
        if allowed_BTS is not None:
            mask_BTS &= allowed_BTS
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


def shared_attention(
    q_RTHDh: jax.Array, pool: Pool, layer: jax.Array, prefix: tuple[jax.Array, jax.Array], slots_RT: jax.Array
) -> jax.Array:
    """Attention of a pool's rows to their prefixes and to their own tokens up to slots_RT: (R, T, H, Dh).

    `prefix` has the layer's keys and values, (C, K, P, Dh) each. The queries of a prefix's sharers meet it in one
    product; scores, not keys, go from prefixes to rows, so both parts have one softmax, in float32.
    """
    rows, length, heads, width = q_RTHDh.shape
    keys_CKPDh, values_CKPDh = prefix
    keys_RKSDh, values_RKSDh = pool.rows.keys_LNKSDh[layer], pool.rows.values_LNKSDh[layer]
    kv_heads = keys_RKSDh.shape[1]
    q = (q_RTHDh * width**-0.5).reshape(rows, length, kv_heads, heads // kv_heads, width)
    q_RKGTDh = q.transpose(0, 2, 3, 1, 4)

    shared_CWKGTP = jnp.einsum(
        "cwkgtd,ckpd->cwkgtp", _by_prefix(q_RKGTDh, pool), keys_CKPDh, preferred_element_type=jnp.float32
    )
    shared_RKGTP = _by_row(shared_CWKGTP, pool)
    own_RKGTS = jnp.einsum("rkgtd,rksd->rkgts", q_RKGTDh, keys_RKSDh, preferred_element_type=jnp.float32)
    lengths_R = pool.lengths_C.at[pool.owners_R].get(mode="clip")
    seen_RP = jnp.arange(keys_CKPDh.shape[2], dtype=lengths_R.dtype) < lengths_R[:, None]
    seen_RTS = jnp.arange(keys_RKSDh.shape[2], dtype=slots_RT.dtype) <= slots_RT[:, :, None]
    least = jnp.finfo(jnp.float32).min
    scores = jnp.concatenate(
        [
            jnp.where(seen_RP[:, None, None, None], shared_RKGTP, least),
            jnp.where(seen_RTS[:, None, None], own_RKGTS, least),
        ],
        axis=-1,
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    shared, own = jnp.split(weights, [keys_CKPDh.shape[2]], axis=-1)
    mixed_CWKGTDh = jnp.einsum(
        "cwkgtp,ckpd->cwkgtd", _by_prefix(shared, pool), values_CKPDh, preferred_element_type=jnp.float32
    )
    mixed = _by_row(mixed_CWKGTDh, pool) + jnp.einsum(
        "rkgts,rksd->rkgtd", own, values_RKSDh, preferred_element_type=jnp.float32
    )
    return mixed.transpose(0, 3, 1, 2, 4).reshape(q_RTHDh.shape).astype(q_RTHDh.dtype)


def _by_prefix(x_R: jax.Array, pool: Pool) -> jax.Array:
    """What rows have, at the seats of their prefixes: (C, W, ...), zeros where nobody sits."""
    prefixes = pool.lengths_C.shape[0]
    empty = jnp.zeros((prefixes, pool.sharers, *x_R.shape[1:]), x_R.dtype)
    return empty.at[pool.owners_R, pool.seats_R].set(x_R, mode="drop")


def _by_row(x_CW: jax.Array, pool: Pool) -> jax.Array:
    return x_CW.at[pool.owners_R, pool.seats_R].get(mode="clip")
