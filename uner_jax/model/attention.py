"""Softmax attention with grouped heads: the reference, for every platform."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from uner_jax.model.cache import KeyValues, Seating

# B batch, R rows, C prefixes, W sharers of one, P slots of a prefix, T queries, S keys and values,
# N = W * G * T, H query heads, K kv heads, G = H // K, Dh head width

# Long rows are attended to in blocks of queries: a block sees no key behind its end, which halves the
# work, none before its first segment, and its scores stay in a CPU's cache.
BLOCK = 128
# So many tokens at the beginning of a row of trees may be what all its trees begin with.
ROOT = 32
# Added to a score that is not to count: far below any, and far from the end of float32.
MASKED = -1e30


def causal_attention(
    q_BTHDh: jax.Array, k_BTKDh: jax.Array, v_BTKDh: jax.Array, segment_ids_BT: jax.Array | None = None
) -> jax.Array:
    """Attention of each token to itself and those before it, of its own segment: (B, T, H, Dh).

    The tokens of a segment stand together in their row.
    """
    if segment_ids_BT is None:
        return _in_blocks(q_BTHDh, k_BTKDh, v_BTKDh)

    def together(queries: slice, keys: Sequence[slice]) -> jax.Array:
        return segment_ids_BT[:, queries, None] == _taken(segment_ids_BT, keys, axis=1)[:, None]

    return _in_blocks(q_BTHDh, k_BTKDh, v_BTKDh, together, _starts(segment_ids_BT))


def branching_attention(
    q_BTHDh: jax.Array, k_BTKDh: jax.Array, v_BTKDh: jax.Array, trees_BT: jax.Array, branches_BT: jax.Array
) -> jax.Array:
    """Attention in rows of trees, each a trunk (branch 0) with branches behind it: (B, T, H, Dh).

    A token sees itself and those before it, of its own tree: the trunk, and its own branch. Tree 0 is the root that
    all trees of the row stand on: up to ROOT tokens at the beginning of the row, which every token sees.
    """

    def together(queries: slice, keys: Sequence[slice]) -> jax.Array:
        tree_B1S, branch_B1S = (_taken(ids_BT, keys, axis=1)[:, None] for ids_BT in (trees_BT, branches_BT))
        tree = (tree_B1S == 0) | (trees_BT[:, queries, None] == tree_B1S)
        return tree & ((branch_B1S == 0) | (branches_BT[:, queries, None] == branch_B1S))

    return _in_blocks(q_BTHDh, k_BTKDh, v_BTKDh, together, _starts(trees_BT), ROOT)


def _starts(ids_BT: jax.Array) -> jax.Array:
    """Where the run of equal ids that a token stands in begins: (B, T)."""
    is_first_BT = jnp.concatenate([jnp.ones_like(ids_BT[:, :1], bool), ids_BT[:, 1:] != ids_BT[:, :-1]], axis=1)
    return jax.lax.cummax(jnp.where(is_first_BT, jnp.arange(ids_BT.shape[1]), jnp.zeros((), int)), axis=1)


def _in_blocks(
    q_BTHDh: jax.Array,
    k_BTKDh: jax.Array,
    v_BTKDh: jax.Array,
    together: Callable[[slice, Sequence[slice]], jax.Array] | None = None,
    starts_BT: jax.Array | None = None,
    root: int = 0,
) -> jax.Array:
    """Attention of each token to itself and those before it that are `together` with it.

    None of them stand before its start, but for the first `root` of the row.
    """
    batch, length, heads, width = q_BTHDh.shape
    kv_heads = k_BTKDh.shape[2]
    q_BTKGDh = (q_BTHDh * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width)
    # heads first, once for all blocks: what a product contracts is beside it in memory.
    q_BKGTDh, k_BKTDh, v_BKTDh = q_BTKGDh.transpose(0, 2, 3, 1, 4), k_BTKDh.swapaxes(1, 2), v_BTKDh.swapaxes(1, 2)
    order_T = jnp.arange(length)

    def attend(queries: slice, first: int, q_BKGTDh: jax.Array, k_BKTDh: jax.Array, v_BKTDh: jax.Array) -> jax.Array:
        # as many as a root may have, whether this row's is so long or not: the mask leaves out the others.
        keys = [slice(root), slice(first, queries.stop)] if first > root > 0 else [slice(first, queries.stop)]
        mask = order_T[queries, None] >= _taken(order_T, keys, axis=0)
        mask_BTS = jnp.broadcast_to(mask, (batch, *mask.shape))
        if together is not None:
            mask_BTS &= together(queries, keys)
        k_BKSDh, v_BKSDh = (_taken(x, keys, axis=2) for x in (k_BKTDh, v_BKTDh))
        return _mix(q_BKGTDh[:, :, :, queries], k_BKSDh, v_BKSDh, mask_BTS)

    mixed = []
    for block, start in enumerate(range(0, length, BLOCK)):
        queries = slice(start, min(start + BLOCK, length))
        whole = partial(attend, queries, 0)
        if starts_BT is None or block == 0:
            mixed.append(whole(q_BKGTDh, k_BKTDh, v_BKTDh))
            continue
        spans = [1 << power for power in range(block.bit_length())] + [block + 1]
        reaches = [partial(attend, queries, (block + 1 - span) * BLOCK) for span in spans]
        needed = block + 1 - jnp.min(starts_BT[:, start]) // BLOCK
        # their own checkpoints: what all reaches would keep for the way back is more to write than to compute again.
        nearest = partial(
            jax.lax.switch,
            jnp.searchsorted(jnp.asarray(spans), needed),
            [jax.checkpoint(reach) for reach in reaches],
        )
        # on a GPU the host would have to wait for every choice.
        mixed.append(jax.lax.platform_dependent(q_BKGTDh, k_BKTDh, v_BKTDh, cpu=nearest, default=jax.checkpoint(whole)))
    return jnp.concatenate(mixed, axis=3).transpose(0, 3, 1, 2, 4).reshape(q_BTHDh.shape).astype(q_BTHDh.dtype)


def _taken(x: jax.Array, parts: Sequence[slice], axis: int) -> jax.Array:
    """These parts of an axis, one behind the other."""
    taken = [jax.lax.slice_in_dim(x, part.start or 0, part.stop, axis=axis) for part in parts]
    return jnp.concatenate(taken, axis=axis) if len(taken) > 1 else taken[0]


def _mix(q_BKGTDh: jax.Array, k_BKSDh: jax.Array, v_BKSDh: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """The values where the mask is true, weighted by a softmax in float32: (B, K, G, T, Dh) float32.

    Every query must see at least one key. The heads of a group meet its keys in one product.
    """
    batch, kv_heads, groups, length, width = q_BKGTDh.shape
    q_BKNDh = q_BKGTDh.reshape(batch, kv_heads, groups * length, width)
    scores_BKNS = jnp.einsum("bknd,bksd->bkns", q_BKNDh, k_BKSDh, preferred_element_type=jnp.float32)
    scores_BKGTS = scores_BKNS.reshape(batch, kv_heads, groups, length, -1)
    weights_BKGTS, total_BKGT1 = _softmax(scores_BKGTS, mask_BTS[:, None, None])
    weights_BKNS = weights_BKGTS.reshape(scores_BKNS.shape).astype(v_BKSDh.dtype)
    mixed_BKNDh = jnp.einsum("bkns,bksd->bknd", weights_BKNS, v_BKSDh, preferred_element_type=jnp.float32)
    return mixed_BKNDh.reshape(q_BKGTDh.shape) / total_BKGT1


def _softmax(scores: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights over the last axis and their sums, by which what they mix is still to be divided.

    A mask that is added, and a division of the narrow result, take a third of the time of `jax.nn.softmax` on a CPU.
    """
    scores += jnp.where(mask, jnp.float32(0), jnp.float32(MASKED))
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def shared_attention(
    q_RTHDh: jax.Array, prefixes: KeyValues, rows: KeyValues, seating: Seating, slots_RT: jax.Array
) -> jax.Array:
    """Attention of a pool's rows to their prefixes and to their own tokens up to slots_RT: (R, T, H, Dh).

    Keys and values are a layer's, without the axis of layers. The queries of a prefix's sharers meet it in one
    product; scores, not keys, go from prefixes to rows, so both parts have one softmax, in float32.
    """
    count, length, heads, width = q_RTHDh.shape
    keys_CKPDh, values_CKPDh = prefixes.keys_LNKSDh, prefixes.values_LNKSDh
    keys_RKSDh, values_RKSDh = rows.keys_LNKSDh, rows.values_LNKSDh
    kv_heads = keys_RKSDh.shape[1]
    q = (q_RTHDh * width**-0.5).astype(keys_CKPDh.dtype).reshape(count, length, kv_heads, heads // kv_heads, width)
    q_RKGTDh = q.transpose(0, 2, 3, 1, 4)

    shared_CKNP = jnp.einsum(
        "cknd,ckpd->cknp", _by_prefix(q_RKGTDh, seating), keys_CKPDh, preferred_element_type=jnp.float32
    )
    shared_RKGTP = _by_row(shared_CKNP, q_RKGTDh.shape[1:4], seating)
    own_RKGTS = jnp.einsum("rkgtd,rksd->rkgts", q_RKGTDh, keys_RKSDh, preferred_element_type=jnp.float32)
    lengths_R = seating.lengths_C.at[seating.owners_R].get(mode="clip")
    seen_RP = jnp.arange(keys_CKPDh.shape[2], dtype=lengths_R.dtype) < lengths_R[:, None]
    seen_RTS = jnp.arange(keys_RKSDh.shape[2], dtype=slots_RT.dtype) <= slots_RT[:, :, None]
    seen = jnp.concatenate([jnp.broadcast_to(seen_RP[:, None], (count, length, seen_RP.shape[1])), seen_RTS], axis=-1)
    weights, total = _softmax(jnp.concatenate([shared_RKGTP, own_RKGTS], axis=-1), seen[:, None, None])
    shared, own = jnp.split(weights.astype(q.dtype), [keys_CKPDh.shape[2]], axis=-1)
    mixed_CKNDh = jnp.einsum(
        "cknp,ckpd->cknd", _by_prefix(shared, seating), values_CKPDh, preferred_element_type=jnp.float32
    )
    mixed = _by_row(mixed_CKNDh, q_RKGTDh.shape[1:4], seating) + jnp.einsum(
        "rkgts,rksd->rkgtd", own, values_RKSDh, preferred_element_type=jnp.float32
    )
    return (mixed / total).transpose(0, 3, 1, 2, 4).reshape(q_RTHDh.shape).astype(q_RTHDh.dtype)


def _by_prefix(x_RKGTX: jax.Array, seating: Seating) -> jax.Array:
    """What rows have, at the seats of their prefixes, zeros where nobody sits: (C, K, W * G * T, ...)."""
    prefixes, (_, kv_heads, *_, width) = seating.lengths_C.shape[0], x_RKGTX.shape
    nobody = jnp.full((prefixes, seating.sharers), x_RKGTX.shape[0], seating.owners_R.dtype)
    numbers_R = jnp.arange(x_RKGTX.shape[0], dtype=nobody.dtype)
    sitting_CW = nobody.at[seating.owners_R, seating.seats_R].set(numbers_R, mode="drop")
    seated_CWKGTX = x_RKGTX.at[sitting_CW].get(mode="fill", fill_value=0)
    # for the products: CPUs have none in bfloat16 where a head's queries are apart.
    return seated_CWKGTX.swapaxes(1, 2).reshape(prefixes, kv_heads, -1, width)


def _by_row(x_CKNX: jax.Array, shape: tuple[int, ...], seating: Seating) -> jax.Array:
    """What `_by_prefix` did to rows of that shape (K, G, T), undone: (R, K, G, T, ...)."""
    kv_heads, groups, length = shape
    x_CKWGTX = x_CKNX.reshape(-1, kv_heads, seating.sharers, groups, length, x_CKNX.shape[-1])
    return x_CKWGTX.swapaxes(1, 2).at[seating.owners_R, seating.seats_R].get(mode="clip")
