"""Every attention kernel that can run here is the reference, forward and backward, and the right one is chosen."""

import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from uner_jax.model import attention
from uner_jax.model.attention import branching_attention, causal_attention
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention, choose_attention, segment_layout
from uner_jax.model.llama import Llama
from uner_jax.training.loss import answer_loss_sum

# B batch, T tokens, H query heads, K kv heads, Dh head width

ROOT = Path(__file__).parent.parent
SPLASH = Attention("splash", interpret=True)
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)


jitted_branching = jax.jit(branching_attention)


def packed(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Segment ids of rows of random segments, with some padding at the end of each."""
    random = np.random.default_rng(seed)
    ids = np.zeros((rows, length), np.int32)
    for row in ids:
        cuts = np.sort(random.choice(np.arange(1, length), random.integers(1, 6), replace=False))
        row[: cuts[-1]] = np.searchsorted(cuts, np.arange(cuts[-1]), side="right") + 1
    return ids


def random_qkv(rows, length, heads, kv_heads, width):
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = (rows, length, heads, width), *((rows, length, kv_heads, width),) * 2, (rows, length, heads, width)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@cache
def compiled(attend):
    def total(qkv, weights, segment_ids):
        real = (segment_ids > 0)[..., None, None].astype(jnp.float32)
        return jnp.sum(attend(*qkv, segment_ids) * weights * real)

    return jax.jit(jax.value_and_grad(total))


def outcome(attend, qkv, weights, segment_ids):
    """A sum over the tokens that are no padding, and its gradients."""
    return compiled(attend)(qkv, weights, segment_ids)


def assert_same_outcome(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-3)
    for x, y in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 128), (4, 2, 64), (3, 1, 64)])
def test_splash_attention_is_the_reference_on_packed_rows(heads, kv_heads, width):
    *qkv, weights = random_qkv(2, 256, heads, kv_heads, width)
    segment_ids = packed(2, 256)
    found, wanted = (outcome(attend, qkv, weights, segment_ids) for attend in (SPLASH, causal_attention))
    assert_same_outcome(found, wanted)


def dense(q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT):
    """The plain formula over all pairs of tokens."""
    return plain(q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT[:, :, None] == segment_ids_BT[:, None])


def plain(q_BTHDh, k_BTKDh, v_BTKDh, together_BTS):
    """The plain formula: a token sees those before it that are together with it."""
    groups = q_BTHDh.shape[2] // k_BTKDh.shape[2]
    k_BTHDh, v_BTHDh = (jnp.repeat(x, groups, axis=2) for x in (k_BTKDh, v_BTKDh))
    scores_BHTS = jnp.einsum("bthd,bshd->bhts", q_BTHDh, k_BTHDh) * q_BTHDh.shape[-1] ** -0.5
    places = np.arange(q_BTHDh.shape[1])
    seen_BTS = together_BTS & (places[:, None] >= places)
    weights_BHTS = jax.nn.softmax(jnp.where(seen_BTS[:, None], scores_BHTS, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights_BHTS, v_BTHDh)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([300, 768]), st.lists(st.lists(st.integers(1, 500), max_size=12), min_size=2, max_size=2))
def test_rows_of_many_blocks_see_what_the_plain_formula_sees(length, lengths):
    """Whatever blocks the segments span: one the whole row, many in a block, or ones that end where a block does."""
    segment_ids = np.zeros((2, length), np.int32)
    for row, sizes in zip(segment_ids, lengths, strict=True):
        numbered = np.repeat(np.arange(1, len(sizes) + 1), sizes)[:length]
        row[: len(numbered)] = numbered
    *qkv, weights = random_qkv(2, length, 2, 1, 8)
    found, wanted = (outcome(attend, qkv, weights, segment_ids) for attend in (causal_attention, dense))
    assert_same_outcome(found, wanted)


trees = st.lists(st.lists(st.integers(1, 250), min_size=1, max_size=4), max_size=6)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([40, 300, 768]), st.integers(0, attention.ROOT), st.lists(trees, min_size=2, max_size=2))
def test_branches_see_the_root_their_trunk_and_themselves(length, root, rows):
    ids = np.zeros((2, 2, length), np.int32)
    for row, sizes in enumerate(rows):
        pieces = [(tree, branch, size) for tree, own in enumerate(sizes, 1) for branch, size in enumerate(own)]
        numbered = np.repeat([piece[:2] for piece in pieces], [piece[2] for piece in pieces], axis=0).reshape(-1, 2)
        ids[:, row, root : root + len(numbered)] = numbered[: length - root].T
    trees_BT, branches_BT = ids
    tree = (trees_BT[:, :, None] == trees_BT[:, None]) | (trees_BT[:, None] == 0)
    branch = (branches_BT[:, :, None] == branches_BT[:, None]) | (branches_BT[:, None] == 0)
    *qkv, _ = random_qkv(2, length, 2, 1, 8)
    found, wanted = jitted_branching(*qkv, trees_BT, branches_BT), plain(*qkv, tree & branch)
    # what is left of a row sees some of what is left before it: no one asks for it.
    real = (trees_BT > 0) | (np.arange(length) < root)
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], atol=1e-5)


def test_a_row_without_segment_ids_is_one_segment():
    *qkv, _ = random_qkv(1, 128, 2, 2, 64)
    np.testing.assert_allclose(SPLASH(*qkv, None), causal_attention(*qkv), atol=1e-5)


def batch_of(rows: int, length: int) -> dict[str, jax.Array]:
    segment_ids = packed(rows, length, seed=3)
    random = np.random.default_rng(4)
    positions = np.zeros_like(segment_ids)
    for row, ids in zip(positions, segment_ids, strict=True):
        starts = np.flatnonzero(np.diff(ids, prepend=0) != 0)
        row[:] = np.arange(length) - starts[np.searchsorted(starts, np.arange(length), side="right") - 1]
    # of tokens that are no padding, and whose next one is of the same segment.
    inside = [np.flatnonzero((ids[:-1] == ids[1:]) & (ids[:-1] > 0))[:20] for ids in segment_ids]
    return {
        "tokens": jnp.asarray(random.integers(0, CONFIG.vocab_size, (rows, length)), jnp.int32),
        "segment_ids": jnp.asarray(segment_ids),
        "positions": jnp.asarray(positions, jnp.int32),
        "answer_index": jnp.asarray([np.resize(places, 20) for places in inside], jnp.int32),
        "answer_targets": jnp.asarray(random.integers(0, CONFIG.vocab_size, (rows, 20)), jnp.int32),
        "answer_weights": jnp.ones((rows, 20), jnp.float32),
    }


def loss_and_gradients(batch, **options):
    model = Llama(CONFIG, nnx.Rngs(0), **options)
    return jax.jit(jax.value_and_grad(answer_loss_sum))(model, batch)


def assert_same(found, wanted, tolerance):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert np.max(np.abs(x - y)) <= tolerance * max(1e-3, np.max(np.abs(y)))


def test_a_model_with_splash_attention_has_the_same_loss_and_gradients():
    batch = batch_of(2, 128)
    assert_same(loss_and_gradients(batch, attention=SPLASH), loss_and_gradients(batch), 1e-4)


MESHES = """
import sys
sys.path.insert(0, "tests")
import jax
from test_kernels import SPLASH, causal_attention, outcome, packed, random_qkv
from uner_jax.mesh import make_mesh
import numpy as np
# with two kv heads, tensor 4 must copy them.
for shape, kv_heads in (((2, 2, 2), 2), ((1, 2, 4), 2), ((1, 8, 1), 4)):
    *qkv, weights = random_qkv(8, 128, 4, kv_heads, 64)
    segment_ids = packed(8, 128)
    wanted = outcome(causal_attention, qkv, weights, segment_ids)
    with jax.set_mesh(make_mesh(*shape)):
        found = outcome(SPLASH, qkv, weights, segment_ids)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3)
    print(shape)
"""


def test_on_a_mesh_it_is_the_same():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MESHES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("\n") == 3, done.stderr


# ---- rematerialisation


@pytest.fixture(scope="module")
def remats():
    """Of every policy: the memory of a step, and what it computes."""
    batch = batch_of(2, 256)
    found = {}
    for remat in ("none", "full", "dots", "qkv", "offload"):
        step = jax.jit(jax.value_and_grad(answer_loss_sum))
        model = Llama(CONFIG, nnx.Rngs(0), remat=remat)
        memory = step.lower(model, batch).compile().memory_analysis().temp_size_in_bytes
        found[remat] = memory, step(model, batch)
    return found


def test_a_policy_changes_what_is_kept(remats):
    memory = {remat: found[0] for remat, found in remats.items()}
    assert memory["none"] > memory["dots"] > memory["qkv"] > memory["full"]


@pytest.mark.parametrize("remat", ["full", "dots", "qkv", "offload"])
def test_a_policy_changes_no_number(remats, remat):
    assert_same(remats[remat][1], remats["none"][1], 1e-5)


def test_offload_puts_the_input_of_a_block_into_host_memory():
    model = Llama(CONFIG, nnx.Rngs(0), remat="offload")
    assert "<host>" in str(jax.make_jaxpr(jax.grad(answer_loss_sum))(model, batch_of(2, 128)))


# ---- cuDNN's layout, and the choice


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 5), st.integers(0, 3))
def test_the_layout_of_segments(lengths, padding, spare):
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths).tolist() + [0] * padding
    if not ids:
        return
    most = max(1, len(lengths) + spare)
    found_lengths, found_starts = segment_layout(jnp.asarray([ids], jnp.int32), most)
    none = [-1] * (most - len(lengths))
    assert found_lengths[0].tolist() == lengths + none
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    assert found_starts[0].tolist() == [*starts, *none, -1]


def mesh_of(platform: str, **facts):
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform, **facts)], dtype=object))


def choose(mesh, length=2048, width=128, dtype=jnp.bfloat16):
    return choose_attention(mesh, length, 7, width, jnp.dtype(dtype))


@pytest.fixture
def with_cudnn(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def test_the_kernel_is_that_of_the_platform(with_cudnn):
    assert choose(mesh_of("cpu")) == (Attention(), None)
    assert choose(mesh_of("tpu")) == (Attention("splash"), None)
    assert choose(mesh_of("gpu", compute_capability="9.0")) == (Attention("cudnn", 7), None)
    assert choose(mesh_of("cuda")) == (Attention("cudnn", 7), None)


@pytest.mark.parametrize(
    ("mesh", "options", "said"),
    [
        (mesh_of("tpu"), {"length": 200}, "multiple of 128"),
        (mesh_of("gpu"), {"dtype": jnp.float32}, "needs bfloat16"),
        (mesh_of("gpu"), {"width": 256}, "up to 128 channels, found 256"),
        (mesh_of("gpu", compute_capability="8.0"), {}, "compute capability 9.0, found 8.0"),
    ],
)
def test_where_it_cannot_be_used_it_says_why(with_cudnn, mesh, options, said):
    attention, why = choose(mesh, **options)
    assert attention == Attention() and said in why


def test_without_cudnn_it_says_so():
    attention, why = choose(mesh_of("gpu"))
    assert attention == Attention() and "not to be had" in why


def test_a_jax_without_the_packed_form_is_noticed(with_cudnn, monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "dot_product_attention", partial(lambda query, key, value: None))
    attention, why = choose(mesh_of("gpu"))
    assert attention == Attention() and "kv_offsets" in why
