"""The model is causal, packs, caches and recomputes without changing its numbers, and every option counts."""

import dataclasses
import math
import zlib
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from uner_jax.mesh import MESH_AXES, RULES, ShardingRules, constrain, make_mesh, partition_spec
from uner_jax.model.adapters import AdapterConfig, adapt
from uner_jax.model.cache import KeyValues, Seating
from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, parameter_axes, tree_shardings, unflatten
from uner_jax.model.rotary import rotate
from uner_jax.model.stages import Stages
from uner_jax.records import InputError
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights.names import TENSOR_NAMES

# B batch, T tokens, S slots, D model width, V vocabulary, L layers

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=32,
    rope_scaling=RopeScaling("llama3", 4.0, original_max_position_embeddings=128),
)
# another value for every field; a new field fails the tests until it stands here.
OTHER = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "max_position_embeddings": 23,
    "rms_norm_eps": 0.1,
    "rope_theta": 100.0,
    "rope_scaling": None,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "family": "qwen3",
    "sliding_window": 23,
    "layers_without_rope": (1,),
}
OTHER_SCALING = {
    "kind": "linear",
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 256,
}
TOKENS = 24


def random_model(config: LlamaConfig, **options) -> Llama:
    """A model whose parameters depend on their name and shape alone, none of them 0 or 1 throughout."""

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        return jnp.asarray(1 + 0.3 * values if name.endswith("scale") else 0.3 * values, jnp.float32)

    model = abstract_model(config, **options)
    return unflatten(model, {name: draw(name, leaf.shape) for name, leaf in flatten(model).items()})


@cache
def shared_model() -> Llama:
    return random_model(CONFIG)


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(CONFIG.vocab_size, size=shape, dtype=np.int32)


def places(rows: int, count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.int32), (rows, count))


# most programs here run once, and compiling them is what takes the time; so does every operation outside of them.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = partial(jax.jit, compiler_options=QUICKLY)


@jit
def jitted_forward(model: Llama, tokens_BT, positions_BT, segment_ids_BT) -> jax.Array:
    return model(tokens_BT, positions_BT, segment_ids_BT)


def forward(model: Llama, tokens_BT, positions_BT=None, segment_ids_BT=None) -> np.ndarray:
    return np.asarray(jitted_forward(model, tokens_BT, positions_BT, segment_ids_BT))


def read(stages: Stages, *rows_of_trees) -> tuple[jax.Array, list[KeyValues]]:
    x_BTD, key_values = stages.read(*map(jnp.asarray, rows_of_trees))
    return jitted_logits(stages.ends, x_BTD), key_values


jitted_logits = jit(lambda ends, x_BTD: ends.logits(ends.norm(x_BTD)))


class Pool:
    """Rows that have nothing of their own yet, behind the first tokens of each prefix."""

    def __init__(
        self, stages: Stages, prefixes_CP, lengths: list[int], owners: list[int], seats: list[int], slots: int
    ):
        self.stages = stages
        whole = np.zeros_like(prefixes_CP)
        _, self.prefixes = read(stages, prefixes_CP, places(*prefixes_CP.shape), whole, whole)
        self.rows = stages.empty(len(owners), slots)
        self.seating = Seating(*(jnp.asarray(values, jnp.int32) for values in (lengths, owners, seats)), sharers=2)

    def extend(self, tokens_RT, positions_RT) -> np.ndarray:
        """The logits behind each of these tokens, which the rows have from now on."""
        tokens_RT, positions_RT = jnp.asarray(tokens_RT), jnp.asarray(positions_RT)
        x_RTD, self.rows = self.stages.extend(tokens_RT, positions_RT, self.seating, self.prefixes, self.rows)
        return np.asarray(jitted_logits(self.stages.ends, x_RTD))


def unshared_pool(model: Llama, rows: int, slots: int) -> Pool:
    """Rows behind prefixes of no tokens."""
    return Pool(Stages(model), np.zeros((rows, 1), np.int32), [0] * rows, list(range(rows)), [0] * rows, slots)


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


# ---- who sees whom


def influence(segment_ids_T: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
    """How strongly the logits at each place (rows) depend on the embedding of each token (columns)."""
    model = shared_model()
    tokens_T = np.arange(segment_ids_T.size, dtype=np.int32)  # all different: one embedding a place

    def outputs(embedding: jax.Array) -> jax.Array:
        leaves = flatten(model) | {"embedding": embedding}
        logits_BTV = unflatten(model, leaves)(tokens_T[None], positions_T[None], segment_ids_T[None])
        return logits_BTV[0].sum(axis=-1)

    jacobian_TVD = jit(jax.jacrev(outputs))(model.embedding[...])
    return np.abs(np.asarray(jacobian_TVD)).sum(axis=-1)[:, : tokens_T.size]


def test_a_token_is_seen_by_itself_and_by_later_ones_of_its_segment_only():
    segments_T = np.asarray([1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0], np.int32)
    positions_T = np.asarray([0, 1, 2, 0, 1, 2, 3, 0, 1, 0, 1], np.int32)
    order_T = np.arange(segments_T.size)
    visible_TT = (segments_T[:, None] == segments_T) & (order_T[:, None] >= order_T)
    found_TT = influence(segments_T, positions_T)
    np.testing.assert_array_equal(found_TT > 1e-4, visible_TT)
    assert (found_TT[~visible_TT] == 0).all()


@pytest.mark.parametrize("place", [1, 7, 11])
def test_a_changed_token_changes_nothing_before_it(place):
    tokens_BT = random_tokens(2, 12)
    changed_BT = tokens_BT.copy()
    changed_BT[:, place] = (tokens_BT[:, place] + 1) % CONFIG.vocab_size
    before, after = forward(shared_model(), tokens_BT), forward(shared_model(), changed_BT)
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert (np.abs(before - after)[:, place:].max(axis=(0, 2)) > 1e-3).all()


def test_two_texts_packed_into_a_row_have_the_logits_of_each_alone():
    first_BT, second_BT = random_tokens(1, 7, seed=1), random_tokens(1, 7, seed=2)
    packed_BT = np.concatenate([first_BT, second_BT, np.zeros((1, 4), np.int32)], axis=1)
    positions_BT = np.asarray([[*range(7), *range(7), *range(4)]], np.int32)
    segments_BT = np.asarray([[1] * 7 + [2] * 7 + [0] * 4], np.int32)
    logits_BTV = forward(shared_model(), packed_BT, positions_BT, segments_BT)
    assert_close(logits_BTV[:, :7], forward(shared_model(), first_BT))
    assert_close(logits_BTV[:, 7:14], forward(shared_model(), second_BT))
    # without the segments the second text reads the first.
    one_text_BTV = forward(shared_model(), packed_BT, positions_BT, np.ones_like(segments_BT))
    assert np.abs(one_text_BTV - logits_BTV)[:, 7:14].max() > 1e-2


def test_padding_rows_and_padding_tokens_change_nothing():
    tokens_BT = random_tokens(2, 12)
    padded_BT, segments_BT = np.zeros((4, 15), np.int32), np.zeros((4, 15), np.int32)
    padded_BT[:2, :12], segments_BT[:2, :12] = tokens_BT, 1
    logits_BTV = forward(shared_model(), padded_BT, places(4, 15) * segments_BT, segments_BT)
    assert_close(logits_BTV[:2, :12], forward(shared_model(), tokens_BT))
    assert np.isfinite(logits_BTV).all()


# ---- positions


def test_positions_default_to_the_place_in_the_row():
    tokens_BT = random_tokens(2, 12)
    np.testing.assert_array_equal(forward(shared_model(), tokens_BT), forward(shared_model(), tokens_BT, places(2, 12)))


def test_attention_depends_on_the_distance_of_positions_alone():
    tokens_BT, positions_BT = random_tokens(2, 12), places(2, 12)
    plain = forward(shared_model(), tokens_BT, positions_BT)
    assert_close(forward(shared_model(), tokens_BT, positions_BT + np.int32(20)), plain)
    assert np.abs(forward(shared_model(), tokens_BT, np.int32(2) * positions_BT) - plain).max() > 1e-2


def test_angles_are_exact_where_bfloat16_positions_would_not_be():
    x_BTNDh = np.random.default_rng(0).normal(size=(1, 2, 1, 8)).astype(jnp.bfloat16)
    positions_BT = np.asarray([[257, 4099]], np.int32)
    exact = rotate(jnp.asarray(x_BTNDh, jnp.float32), jnp.asarray(positions_BT), CONFIG)
    found = rotate(jnp.asarray(x_BTNDh), jnp.asarray(positions_BT), CONFIG)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


# ---- trees and pools

# the lengths of 4 pieces in each of 2 rows; what is too much for the slots is not read.
SLOTS = 12
lengths = st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=4, max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths)
@example([[4, 1], [4, 4], [2, 0], [4, 4]])  # the last token in the last slot, with padding behind it
def test_reading_in_pieces_equals_reading_the_whole(lengths_PB):
    tokens_BT = random_tokens(2, SLOTS)
    whole_BTV = forward(shared_model(), tokens_BT)
    pool, done_B = unshared_pool(shared_model(), 2, SLOTS), np.zeros(2, int)
    for wanted_B in lengths_PB:
        lengths_B = np.minimum(wanted_B, SLOTS - done_B)
        positions_BT = (done_B[:, None] + np.arange(4)).astype(np.int32)
        piece_BT = np.take_along_axis(tokens_BT, np.minimum(positions_BT, SLOTS - 1), axis=1)
        # what pads a row is not what stands there in the text.
        piece_BT = np.where(np.arange(4) < lengths_B[:, None], piece_BT, (piece_BT + np.int32(1)) % np.int32(40))
        logits_BTV = pool.extend(piece_BT, positions_BT)
        for row, (start, count) in enumerate(zip(done_B, lengths_B, strict=True)):
            assert_close(logits_BTV[row, :count], whole_BTV[row, start : start + count])
        done_B = done_B + lengths_B


# who owns whom, in seats that no two rows of a prefix share; the last row is nobody's.
@pytest.mark.parametrize(
    ("owners", "seats"), [([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 0, 0, 3], [1, 1, 0, 0]), ([1, 1, 0, 7], [0, 1, 1, 0])]
)
def test_rows_that_share_a_prefix_read_on_as_if_it_were_their_own(owners, seats):
    prefixes_CP, endings_RT = random_tokens(4, 6, seed=1), random_tokens(4, 5, seed=2)
    lengths = [6, 2, 4, 1]
    pool = Pool(Stages(shared_model()), prefixes_CP, lengths, owners, seats, 5)
    starts_R1 = np.asarray([[lengths[min(owner, 3)]] for owner in owners], np.int32)
    logits_RTV = pool.extend(endings_RT, starts_R1 + places(4, 5))
    for row, owner in enumerate(owners):
        if owner < 4:
            whole_T = np.concatenate([prefixes_CP[owner, : lengths[owner]], endings_RT[row]])
            assert_close(logits_RTV[row], forward(shared_model(), whole_T[None])[0, lengths[owner] :])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=3))
def test_a_branch_is_read_as_if_it_alone_followed_its_trunk(shape):
    width = 60
    tokens_BT = random_tokens(1, width)
    positions_BT, trees_BT, branches_BT = np.zeros((3, 1, width), np.int32)
    alone = []
    end = 0
    for tree, (trunk, branches) in enumerate(shape, 1):
        start, sizes = end, [trunk, *branches]
        for branch, size in enumerate(sizes):
            own = np.arange(end, end + size)
            positions_BT[0, own] = np.arange(size) + (trunk if branch else 0)
            trees_BT[0, own], branches_BT[0, own] = tree, branch
            before = np.arange(start, start + trunk) if branch else own[:0]
            alone.append((own, np.concatenate([before, own])))
            end += size
    logits_BTV, _ = read(Stages(shared_model()), tokens_BT, positions_BT, trees_BT, branches_BT)
    rows_NT = np.zeros((len(alone), 10), np.int32)
    for row, (_, whole) in enumerate(alone):
        rows_NT[row, : len(whole)] = tokens_BT[0, whole]
    wanted_NTV = forward(shared_model(), rows_NT)
    for row, (own, whole) in enumerate(alone):
        assert_close(np.asarray(logits_BTV)[0, own], wanted_NTV[row, len(whole) - len(own) : len(whole)])


# what differs between the families, at least once.
FAMILIES = {
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3", "head_dim": 6},
    "smollm3": {"family": "smollm3", "num_hidden_layers": 3, "layers_without_rope": (1,)},
}


@pytest.mark.parametrize("layers_of_a_stage", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_on_behind_a_prefix_as_it_reads_the_whole(family, layers_of_a_stage):
    model = random_model(dataclasses.replace(CONFIG, **FAMILIES[family]))
    prefixes_CP, endings_RT = random_tokens(2, 6, seed=1), random_tokens(2, 5, seed=2)
    pool = Pool(Stages(model, layers_of_a_stage), prefixes_CP, [6, 4], [1, 0], [0, 0], 5)
    starts_R1 = np.asarray([[4], [6]], np.int32)
    logits_RTV = pool.extend(endings_RT, starts_R1 + places(2, 5))
    for row, prefix_T in enumerate((prefixes_CP[1, :4], prefixes_CP[0])):
        whole_BT = np.concatenate([prefix_T, endings_RT[row]])[None]
        assert_close(logits_RTV[row], forward(model, whole_BT)[0, len(prefix_T) :])


def test_layers_without_rotary_positions_see_the_order_of_tokens_through_the_mask_alone():
    nowhere = dataclasses.replace(CONFIG, layers_without_rope=tuple(range(CONFIG.num_hidden_layers)))
    tokens_BT, model = random_tokens(2, 12), random_model(nowhere)
    plain = forward(model, tokens_BT)
    assert_close(forward(model, tokens_BT, np.int32(3) * places(2, 12)), plain)
    last_layer = random_model(dataclasses.replace(CONFIG, layers_without_rope=(1,)))
    for other in (shared_model(), last_layer):
        assert np.abs(forward(other, tokens_BT) - plain).max() > 1e-3


def test_a_long_row_has_the_same_logits_whole_packed_and_in_a_pool():
    config = dataclasses.replace(CONFIG, max_position_embeddings=300)
    model, tokens_BT = random_model(config), random_tokens(2, 140)
    whole_BTV = forward(model, tokens_BT)
    in_pool_BTV = unshared_pool(model, 2, 140).extend(tokens_BT, places(2, 140))
    assert_close(in_pool_BTV, whole_BTV)
    segments_BT = np.repeat(np.asarray([[1, 2]], np.int32), 140, axis=1)
    packed_BTV = forward(model, tokens_BT.reshape(1, 280), places(2, 140).reshape(1, 280), segments_BT)
    assert_close(packed_BTV.reshape(whole_BTV.shape), whole_BTV)


# ---- options


def test_full_remat_has_the_gradients_of_none():
    tokens_BT = random_tokens(2, 12)
    weights_BTV = np.random.default_rng(0).normal(size=(2, 12, CONFIG.vocab_size)).astype(np.float32)

    def loss(model: Llama) -> jax.Array:
        return (jax.nn.log_softmax(model(tokens_BT)) * weights_BTV).mean()

    gradient = jit(jax.value_and_grad(loss))
    plain_loss, plain = gradient(random_model(CONFIG, remat="none"))
    remat_loss, remat = gradient(random_model(CONFIG, remat="full"))
    assert_close(remat_loss, plain_loss, 1e-6)
    for name, leaf in flatten(plain).items():
        assert np.abs(np.asarray(leaf)).max() > 1e-6, name
        assert_close(flatten(remat)[name], leaf, 1e-6)


def test_full_remat_keeps_only_the_inputs_of_the_blocks():
    config = dataclasses.replace(CONFIG, num_hidden_layers=8)
    tokens_BT = random_tokens(3, 30)

    def kept_per_layer(remat: str) -> list[tuple[int, ...]]:
        """The shapes, without the layer axis, of what the backward pass of the blocks needs beside parameters."""
        model = abstract_model(config, remat=remat)
        _, backward = jax.eval_shape(lambda model: jax.vjp(lambda model: model(tokens_BT), model), model)
        shapes = [leaf.shape for leaf in jax.tree.leaves(backward)]
        return [shape[1:] for shape in shapes if len(shape) > 2 and shape[:2] == (8, 3)]

    assert kept_per_layer("full") == [(3, 30, config.hidden_size)]
    assert len(kept_per_layer("none")) > 10


def test_bfloat16_computes_nearly_the_same_in_float32_logits():
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    tokens_BT = random_tokens(2, 12)
    exact = forward(random_model(config), tokens_BT)
    model = random_model(config, compute_dtype=jnp.bfloat16)
    assert jax.eval_shape(model.hidden, tokens_BT).dtype == jnp.bfloat16
    logits_BTV = forward(model, tokens_BT)
    in_pool_BTV = unshared_pool(model, 2, 12).extend(tokens_BT, places(2, 12))
    for found in (logits_BTV, in_pool_BTV):
        assert found.dtype == jnp.float32
        assert 0 < np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)


def changes_output(config: LlamaConfig) -> bool:
    """Whether the config computes other logits than CONFIG, with the same parameters where it has the same."""
    tokens_BT = random_tokens(2, TOKENS)
    plain, changed = shared_model(), random_model(config)
    logits_BTV = forward(changed, tokens_BT)
    assert logits_BTV.shape == (2, TOKENS, config.vocab_size)
    assert logits_BTV.dtype == jnp.float32
    assert np.isfinite(logits_BTV).all()
    for name in flatten(plain).keys() & flatten(changed).keys():
        if flatten(plain)[name].shape == flatten(changed)[name].shape:
            np.testing.assert_array_equal(flatten(plain)[name], flatten(changed)[name])
    expected_BTV = forward(plain, tokens_BT)
    return logits_BTV.shape != expected_BTV.shape or bool(np.abs(logits_BTV - expected_BTV).max() > 1e-3)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LlamaConfig)])
def test_every_field_of_the_config_changes_the_output(field):
    config = dataclasses.replace(CONFIG, **{field: OTHER[field]})
    if field in ("max_position_embeddings", "sliding_window"):
        with pytest.raises(ValueError, match=f"24 tokens exceed {field} 23"):
            random_model(config)(random_tokens(1, TOKENS))
        assert forward(random_model(config), random_tokens(1, 23)).shape == (1, 23, CONFIG.vocab_size)
    else:
        assert changes_output(config)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RopeScaling)])
def test_every_field_of_the_rotary_scaling_changes_the_output(field):
    scaling = dataclasses.replace(CONFIG.rope_scaling, **{field: OTHER_SCALING[field]})
    assert changes_output(dataclasses.replace(CONFIG, rope_scaling=scaling))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"family": "gemma"}, "family 'gemma' is not supported; expected one of llama, mistral"),
        ({"sliding_window": 0}, "sliding_window must be at least 1 token, found 0"),
        ({"layers_without_rope": (0, 2)}, "names a layer outside of 0..1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(CONFIG, **fields)


# ---- where parameters lie

AXIS_NAMES = {field.name for field in dataclasses.fields(ShardingRules)}
MANY_PARAMETERS = dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True, family="qwen3")


def test_every_parameter_has_one_logical_axis_a_dimension_and_a_hugging_face_name():
    model = abstract_model(MANY_PARAMETERS)
    axes, leaves = parameter_axes(model), flatten(model)
    assert axes.keys() == leaves.keys() == TENSOR_NAMES.keys()
    for name, leaf in leaves.items():
        assert len(axes[name]) == leaf.ndim, name
        assert set(axes[name]) <= AXIS_NAMES, name
        assert (axes[name][0] == "layers") == name.startswith("layers."), name
    sizes = {"vocab": 40, "embed": 16, "mlp": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "layers": 2, "norm": 16}
    for name, leaf in leaves.items():
        assert leaf.shape == tuple(sizes[axis] for axis in axes[name]), name


def test_every_sharding_rule_serves_a_parameter_or_the_batch():
    adapted = jax.eval_shape(lambda model: adapt(model, AdapterConfig(2), jax.random.key(0)), abstract_model(CONFIG))
    used = {axis for axes in parameter_axes(adapted).values() for axis in axes}
    assert used | {"batch"} == AXIS_NAMES
    named = {axis for field in dataclasses.astuple(RULES) for axis in (field if isinstance(field, tuple) else (field,))}
    assert named - {None} == set(MESH_AXES)


@given(
    st.lists(st.tuples(st.integers(1, 48), st.sampled_from([*sorted(AXIS_NAMES), None])), max_size=4),
    st.fixed_dictionaries({axis: st.integers(1, 8) for axis in MESH_AXES}),
)
def test_a_dimension_is_cut_exactly_if_its_mesh_axes_divide_it(dimensions, mesh_shape):
    shape, axes = tuple(size for size, _ in dimensions), tuple(axis for _, axis in dimensions)
    spec = partition_spec(shape, axes, mesh_shape)
    assert len(spec) == len(shape)
    for size, axis, entry in zip(shape, axes, spec, strict=True):
        rule = getattr(RULES, axis) if axis else None
        pieces = math.prod(mesh_shape[name] for name in ((rule,) if isinstance(rule, str) else rule or ()))
        assert entry == (rule if size % pieces == 0 else None)


def test_two_key_value_heads_stay_whole_on_four_tensor_devices():
    mesh_shape = {"data": 1, "fsdp": 2, "tensor": 4}
    shape, axes = (2, 16, 2, 8), ("layers", "embed", "kv_heads", "head_dim")
    assert partition_spec(shape, axes, mesh_shape) == P(None, "fsdp", None, None)
    assert partition_spec((2, 16, 4, 8), axes, mesh_shape) == P(None, "fsdp", "tensor", None)


def test_what_is_no_parameter_lies_whole_everywhere():
    mesh = make_mesh()
    tree = {"model": abstract_model(CONFIG), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    shardings = flatten(tree_shardings(tree, mesh))
    assert shardings.pop("step").spec == P()
    assert shardings["model.layers.mlp.gate.kernel"].spec == P(None, "fsdp", "tensor")
    assert len(shardings) == len(flatten(tree["model"]))


def test_a_mesh_over_all_devices():
    count = jax.device_count()
    assert dict(make_mesh().shape) == {"data": 1, "fsdp": count, "tensor": 1}
    assert dict(make_mesh(data=-1, fsdp=1).shape) == {"data": count, "fsdp": 1, "tensor": 1}
    tokens_BT = random_tokens(count, 6)
    alone = forward(shared_model(), tokens_BT)
    with jax.set_mesh(make_mesh()):
        assert_close(forward(shared_model(), tokens_BT), alone)


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.zeros(3)
    assert constrain(x, "batch") is x


@pytest.mark.parametrize(
    "sizes",
    [(-1, -1, 1), (0, -1, 1), (1, 0, 1), (-2, -1, 1), (1, 1, 1000), (1000, -1, 1), (-1, 1, -1)],
)
def test_a_mesh_that_does_not_fit_says_so(sizes):
    with pytest.raises(InputError) as error:
        make_mesh(*sizes)
    assert "mesh data={} fsdp={} tensor={} does not fit".format(*sizes) in str(error.value)
    assert f"{jax.device_count()} device(s)" in str(error.value)


# ---- a real model

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture(scope="module")
def stories(shared_data) -> Llama:
    """The 260K-parameter LLaMA of llama2.c: seven sizes, then float32 tensors."""
    numbers = np.fromfile(shared_data / "models" / "stories260K" / "stories260K.bin", np.float32)
    dim, inner, layers, heads, kv_heads, vocab, length = (int(x) for x in numbers[:7].view(np.int32))
    head_dim = dim // heads
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    place = 7

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        place += math.prod(shape)
        return numbers[place - math.prod(shape) : place].reshape(shape)

    def half_split(weights_LOD: np.ndarray) -> np.ndarray:
        pairs = weights_LOD.reshape(layers, -1, head_dim // 2, 2, dim)
        return pairs.swapaxes(2, 3).reshape(layers, -1, head_dim, dim)

    leaves = {
        "embedding": take(vocab, dim),
        "layers.attention_norm.scale": take(layers, dim),
        "layers.attention.query.kernel": half_split(take(layers, heads * head_dim, dim)).transpose(0, 3, 1, 2),
        "layers.attention.key.kernel": half_split(take(layers, kv_heads * head_dim, dim)).transpose(0, 3, 1, 2),
        "layers.attention.value.kernel": take(layers, kv_heads, head_dim, dim).transpose(0, 3, 1, 2),
        "layers.attention.output.kernel": take(layers, dim, heads, head_dim).transpose(0, 2, 3, 1),
        "layers.mlp_norm.scale": take(layers, dim),
        "layers.mlp.gate.kernel": take(layers, inner, dim).swapaxes(1, 2),
        "layers.mlp.down.kernel": take(layers, dim, inner).swapaxes(1, 2),
        "layers.mlp.up.kernel": take(layers, inner, dim).swapaxes(1, 2),
        "norm.scale": take(dim),
    }
    # what is left are the tables of cosines and sines.
    assert place + length * head_dim == numbers.size
    return unflatten(abstract_model(config), {name: jnp.asarray(leaf) for name, leaf in leaves.items()})


@pytest.fixture(scope="module")
def story_ids(shared_data: Path) -> list[int]:
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    return [tokenizer.bos_id, *tokenizer.encode(STORY)]


def test_a_real_model_tells_its_story(stories, story_ids, shared_data):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    count = len(story_ids)
    tokens_BT = np.zeros((1, count), np.int32)
    tokens_BT[0, 0] = tokenizer.bos_id
    for place in range(1, count):
        tokens_BT[0, place] = forward(stories, tokens_BT)[0, place - 1].argmax()
    assert tokenizer.decode(tokens_BT[0].tolist()) == STORY


def test_a_real_model_tells_its_story_in_a_pool(stories, story_ids, shared_data):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    written, pool = [tokenizer.bos_id], unshared_pool(stories, 1, len(story_ids))
    while len(written) < len(story_ids):
        last_BT, place_BT = np.asarray([[written[-1]], [len(written) - 1]], np.int32)[:, None]
        logits_BTV = pool.extend(last_BT, place_BT)
        written.append(int(logits_BTV[0, 0].argmax()))
    assert tokenizer.decode(written) == STORY
