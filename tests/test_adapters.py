"""Adapters: what is trained and what is not, frozen kernels in few bits, PEFT's files, and runs that train them."""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from safetensors.numpy import load_file, save_file

from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.data.builder import Example, build
from uner_jax.mesh import make_mesh
from uner_jax.model.adapters import TARGETS, AdapterConfig, adapt, join, merge, projections, split, with_dropout
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten
from uner_jax.model.quantised import BLOCK, LEVELS, Quantised
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training import loop
from uner_jax.training.config import CheckpointConfig, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from uner_jax.training.optimizer import make_optimizer
from uner_jax.training.step import TrainState, make_step
from uner_jax.weights import load_model, load_model_tokenizer
from uner_jax.weights.hf import write_hf
from uner_jax.weights.load import read_adapter
from uner_jax.weights.peft import read_peft, write_peft

tfds.disable_progress_bar()

ROOT = Path(__file__).parent.parent
BASES = ["float32", "bfloat16", "int8", "int4", "nf4"]
ARCHITECTURE = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    attention_bias=True,
)
TOKENS = np.random.default_rng(5).integers(0, 512, (2, 24), np.int32)


@jax.jit
def small_model():
    """A model whose logits are not close to each other."""
    model = Llama(ARCHITECTURE, nnx.Rngs(0), remat="full")
    return jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 2 else leaf, model)


@cache
def trained_model(config):
    trained, frozen = split(adapt(small_model(), config, jax.random.key(0)))
    random = np.random.default_rng(0)
    return join(jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.1, leaf.shape), jnp.float32), trained), frozen)


def adapted_model(config):
    """An adapted model as training may leave it: A and B of some size."""
    return jax.tree.map(jnp.copy, trained_model(config))


@jax.jit
def logits(model):
    return model(TOKENS)


def equal(ours, theirs):
    ours, theirs = flatten(ours), flatten(theirs)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """The programs here run once or twice: compiling them is what takes the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# ---- the model


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj",), ("o_proj", "down_proj")])
def test_new_adapters_change_no_logit(targets):
    adapted = adapt(small_model(), AdapterConfig(8, targets=targets), jax.random.key(1))
    np.testing.assert_array_equal(logits(adapted), logits(small_model()))
    assert all(np.any(leaf) == (name[-1] == "a") for name, leaf in flatten(split(adapted)[0]).items())


@pytest.mark.parametrize("base", BASES)
def test_a_merged_model_equals_the_adapted_one(base):
    config = AdapterConfig(4, alpha=6.0, base=base)
    expected, plain = logits(adapted_model(config)), logits(small_model())
    assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
    merged = merge(adapted_model(config))
    np.testing.assert_allclose(logits(merged), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert {name: leaf.shape for name, leaf in flatten(merged).items()} == {
        name: leaf.shape for name, leaf in flatten(small_model()).items()
    }


def test_alpha_over_rank_scales_what_adapters_give():
    by_rank = {rank: adapt(small_model(), AdapterConfig(rank, alpha=8.0), jax.random.key(0)) for rank in (2, 4)}
    assert [projections(model)["q_proj"].adapter.scaling for model in by_rank.values()] == [4.0, 2.0]
    one, two = (logits(adapted_model(AdapterConfig(4, alpha=alpha))) for alpha in (8.0, 16.0))
    assert np.abs(one - two).max() > 0.01


@pytest.mark.parametrize("targets", [TARGETS, ("v_proj",), ("gate_proj", "k_proj")])
def test_only_the_targets_are_adapted(targets):
    model = adapt(small_model(), AdapterConfig(4, targets=targets), jax.random.key(0))
    assert {name for name, layer in projections(model).items() if layer.adapter is not None} == set(targets)
    trained, frozen = map(flatten, split(model))
    assert len(trained) == 2 * len(targets) and frozen.keys() == flatten(small_model()).keys()
    # the layers begin differently, and so do the targets.
    drawn = [layer.tobytes() for name, leaf in trained.items() if name[-1] == "a" for layer in np.asarray(leaf)]
    assert len(set(drawn)) == len(targets) * ARCHITECTURE.num_hidden_layers


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8", "nf4"])
def test_a_base_of_any_dtype_becomes_what_is_asked_for(base):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small_model())
    kept = flatten(adapt(model, AdapterConfig(4, base=base), jax.random.key(0)))
    codes = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "nf4": "uint8"}[base]
    for name, leaf in kept.items():
        assert leaf.dtype == (codes if name.endswith((".kernel", ".codes")) else "float32"), name


def test_what_was_split_is_joined_again():
    for model in (adapted_model(AdapterConfig(4, base="nf4")), small_model()):
        assert equal(join(*split(model)), model)
    assert not flatten(split(small_model())[1])


def test_dropout_follows_its_key_and_keeps_the_mean():
    model = adapted_model(AdapterConfig(4, dropout=0.5))
    run = jax.jit(lambda model, key: with_dropout(model, key).hidden(TOKENS))
    first, again, other = (np.asarray(run(model, jax.random.key(seed))) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and np.abs(first - other).max() > 1e-3
    adapter = jax.tree.map(lambda leaf: leaf[0], projections(model)["q_proj"].adapter)
    x = jnp.ones((1, 4000, 64), jnp.float32)
    whole = adapter(x)
    adapter.key = nnx.Variable(jax.random.key(3))
    np.testing.assert_allclose(jnp.mean(adapter(x), axis=1), jnp.mean(whole, axis=1), atol=0.05)
    # without a dropout there is no key.
    model = with_dropout(adapted_model(AdapterConfig(4)), jax.random.key(0))
    assert all(layer.adapter.key is None for layer in projections(model).values())


# ---- kernels in few bits


def test_nf4_is_the_published_table():
    # its definition: quantiles of a normal distribution, eight above 0 and seven below, and 0, scaled to -1..1.
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
    table = np.sort([*above, 0.0, *below]) / max(above)
    np.testing.assert_allclose(LEVELS["nf4"], table, atol=1e-6)
    assert LEVELS["nf4"][0] == -1 and LEVELS["nf4"][7] == 0 and LEVELS["nf4"][15] == 1


def dequantised(quantised):
    return np.asarray(jax.lax.map(lambda layer: layer.dequantised(jnp.float32), quantised))


@pytest.mark.parametrize("kind", ["nf4", "int4"])
def test_every_level_comes_back_as_it_was(kind):
    levels = np.array(LEVELS[kind][1:] if kind == "int4" else LEVELS[kind], np.float32)
    scales = np.float32(2.0) ** np.arange(-6, 6)
    kernel = np.random.default_rng(0).choice(levels, (1, BLOCK, scales.size))
    kernel[0, 7] = 1.0  # every block reaches its scale
    kernel *= scales
    quantised = Quantised(jnp.asarray(kernel), ("embed", "mlp"), 1, kind)
    np.testing.assert_array_equal(quantised.scales[0, 0], scales)
    np.testing.assert_array_equal(dequantised(quantised), kernel)
    # two codes a byte, the first in the high bits.
    high, low = (np.array(LEVELS[kind], np.float32)[codes] for codes in divmod(np.asarray(quantised.codes[0]), 16))
    np.testing.assert_array_equal(np.stack([high, low], 1).reshape(kernel[0].shape) * scales, kernel[0])


@pytest.mark.parametrize(("shape", "inputs"), [((128, 4, 6), 1), ((4, 64, 5), 2), ((96, 7), 1), ((3, 10, 4), 2)])
@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_errors_stay_within_half_a_step(kind, shape, inputs):
    random = np.random.default_rng(0)
    kernel = random.normal(0, 1, (2, *shape)) * np.exp(random.normal(0, 1, shape[inputs:]))
    kernel = kernel.astype(np.float32)
    kernel[0, ..., 0] = 0.0
    quantised = Quantised(jnp.asarray(kernel), ("embed",) * len(shape), inputs, kind)
    error = np.abs(dequantised(quantised) - kernel)
    if kind == "int8":
        largest = np.abs(kernel).max(axis=tuple(range(1, inputs + 1)), keepdims=True)
        assert quantised.codes[...].nbytes == kernel.size
        assert np.all(error <= largest / 127 / 2 * 1.001)
    else:
        axis, count = inputs, shape[inputs - 1]
        block = next(size for size in (64, 32, 16, 8, 4, 2) if count % size == 0)
        groups = (2, *shape[: inputs - 1], count // block, block, *shape[inputs:])
        largest = np.abs(kernel).reshape(groups).max(axis=axis + 1)
        np.testing.assert_array_equal(quantised.scales[...], np.where(largest > 0, largest, 1))
        half_step = np.diff(LEVELS[kind]).max() / 2
        assert quantised.codes[...].nbytes == kernel.size // 2
        assert np.all(error.reshape(groups) <= half_step * np.expand_dims(largest, axis + 1) * 1.001)
    assert not error[0, ..., 0].any() and error.any()


def test_an_odd_number_of_inputs_has_no_pairs():
    with pytest.raises(InputError, match=r"nf4 packs inputs in pairs; a kernel of shape \(7, 4\) has 7: use int8"):
        Quantised(jnp.ones((2, 7, 4), jnp.float32), ("embed", "mlp"), 1, "nf4")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_one_layer_is_dequantised_at_a_time(remat):
    wide = dataclasses.replace(ARCHITECTURE, hidden_size=128, intermediate_size=256)

    def memory(layers):
        """Bytes of a gradient beside its arguments, and of the kernels as float32."""
        config = dataclasses.replace(wide, num_hidden_layers=layers)
        model = abstract_model(config, remat=remat)
        kernels = sum(4 * leaf.size for name, leaf in flatten(model).items() if "kernel" in name)
        adapted = jax.eval_shape(partial(adapt, config=AdapterConfig(2, base="nf4"), key=jax.random.key(0)), model)
        gradient = jax.grad(lambda trained, frozen: jnp.sum(join(trained, frozen).hidden(TOKENS[:1, :8])))
        program = jax.jit(gradient).lower(*split(adapted)).compile()
        return program.memory_analysis().temp_size_in_bytes, kernels

    (few, few_kernels), (many, many_kernels) = memory(2), memory(16)
    assert many - few < (many_kernels - few_kernels) / 4


# ---- the step


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    index = np.sort(np.stack([random.choice(23, 6, replace=False) for _ in range(4)])).astype(np.int32)
    tokens = random.integers(0, 512, (4, 24)).astype(np.int32)
    return {
        "tokens": tokens,
        "positions": np.broadcast_to(np.arange(24, dtype=np.int32), (4, 24)).copy(),
        "segment_ids": np.ones((4, 24), np.int32),
        "answer_index": index,
        "answer_targets": np.take_along_axis(tokens, index + 1, axis=1),
        "answer_weights": np.ones((4, 6), np.float32),
    }


def program_of(config, accumulation, batch, seed=0):
    """A state, and the step for it, compiled."""
    optimizer = make_optimizer(OptimizerConfig(1e-2, warmup_ratio=0.0), 10)
    model, mesh = adapted_model(config), make_mesh()
    state = TrainState(model, optimizer.init(split(model)[0]))
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # optax is not strict
        return state, make_step(optimizer, accumulation, mesh, state, seed).lower(state, batch).compile()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_the_base_gets_no_update_and_no_optimizer_state(base, accumulation, batch):
    config = AdapterConfig(4, base=base, targets=("q_proj", "down_proj"))
    before_trained, before_frozen = split(adapted_model(config))
    state, program = program_of(config, accumulation, batch)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    trained_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(before_trained))
    assert len(moments) == 2 * 4 and sum(leaf.nbytes for leaf in moments) == 2 * trained_bytes

    after, _ = program(state, batch)
    trained, frozen = split(after.model)
    assert equal(frozen, before_frozen)
    assert all(not np.array_equal(leaf, flatten(before_trained)[name]) for name, leaf in flatten(trained).items())
    # and it takes over the memory of its argument.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(after))
    assert program.memory_analysis().alias_size_in_bytes >= 0.95 * size


def test_dropout_of_a_step_depends_on_seed_and_number(batch):
    config = AdapterConfig(4, dropout=0.3)

    def losses(seed):
        state, program = program_of(config, 1, batch, seed)
        found = []
        for _ in range(2):
            before = jax.tree.map(jnp.copy, state.model)
            state, measured = program(state, batch)
            found.append(float(measured.loss))
            # the same parameters at the next number.
            state = TrainState(before, state.optimizer)
        return found

    first, again, other = losses(0), losses(0), losses(1)
    assert first == again and len({*first, *other}) == 4


def test_microbatches_drop_different_inputs(batch):
    twice = {name: np.repeat(values[:1], 4, axis=0) for name, values in batch.items()}
    found = []
    for accumulation in (1, 2):
        state, program = program_of(AdapterConfig(4), accumulation, twice)
        found.append(float(program(state, twice)[1].loss))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    # of two microbatches of the same row each has a mask of its own: their mean is not that of one.
    with_mask = []
    for rows in (1, 2):
        part = {name: np.repeat(values[:1], rows, axis=0) for name, values in batch.items()}
        state, program = program_of(AdapterConfig(4, dropout=0.5), rows, part)
        with_mask.append(float(program(state, part)[1].loss))
    assert with_mask[0] != pytest.approx(with_mask[1], rel=1e-4)


# ---- PEFT's files


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")


@pytest.fixture(scope="module")
def base_dir(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "base"
    write_hf(small_model(), tokenizer, directory)
    return directory


HEADS = {"q_proj": 4, "k_proj": 2, "v_proj": 2}


def sides(target):
    """Inputs and outputs of a linear layer."""
    if target in HEADS:
        return 64, HEADS[target] * 16
    return {"o_proj": (64, 64), "gate_proj": (64, 96), "up_proj": (64, 96), "down_proj": (96, 64)}[target]


def module(target):
    return f"{'self_attn' if target[0] in 'qkvo' else 'mlp'}.{target}"


def handwritten(directory, base, targets, rank=4, tensors=(), **fields):
    """An adapter as the documentation of PEFT's checkpoint format describes it; returns its matrices."""
    directory.mkdir()
    random = np.random.default_rng(1)
    matrices = {}
    for layer in range(3):
        for target in targets:
            inputs, outputs = sides(target)
            name = f"base_model.model.model.layers.{layer}.{module(target)}"
            matrices[f"{name}.lora_A.weight"] = random.normal(0, 0.1, (rank, inputs)).astype(np.float32)
            matrices[f"{name}.lora_B.weight"] = random.normal(0, 0.1, (outputs, rank)).astype(np.float32)
    matrices |= dict(tensors)
    save_file({name: x for name, x in matrices.items() if x is not None}, directory / "adapter_model.safetensors")
    config = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": str(base), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 10, "lora_dropout": 0.05,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
        "r": rank, "rank_pattern": {}, "revision": None, "target_modules": list(targets), "task_type": "CAUSAL_LM",
        "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config | fields))
    return matrices


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), TARGETS])
def test_an_adapter_made_elsewhere_loads_as_a_dense_merge(targets, rslora, base_dir, tmp_path):
    matrices = handwritten(tmp_path / "adapter", base_dir, targets, use_rslora=rslora)
    dense = load_file(base_dir / "model.safetensors")
    scaling = 10 / (2.0 if rslora else 4.0)
    for layer in range(3):
        for target in targets:
            a, b = (
                matrices[f"base_model.model.model.layers.{layer}.{module(target)}.lora_{side}.weight"] for side in "AB"
            )
            dense[f"model.layers.{layer}.{module(target)}.weight"] += scaling * b @ a
    shutil.copytree(base_dir, tmp_path / "dense")
    save_file(dense, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    expected = flatten(load_model(tmp_path / "dense"))
    for name, leaf in flatten(load_model(tmp_path / "adapter")).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=1e-6, err_msg=name)
    # PEFT saves no tokenizer: the base has it.
    assert load_model_tokenizer(tmp_path / "adapter").fingerprint == load_model_tokenizer(base_dir).fingerprint
    assert load_model(tmp_path / "adapter", "bfloat16").embedding[...].dtype == jnp.bfloat16


def test_an_adapter_comes_through_and_back_bit_for_bit(base_dir, tokenizer, tmp_path):
    matrices = handwritten(tmp_path / "one", base_dir, TARGETS)
    write_peft(read_peft(tmp_path / "one"), tokenizer, tmp_path / "two")
    back = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert back.keys() == matrices.keys()
    assert all(np.array_equal(back[name], matrix) for name, matrix in matrices.items())
    config = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    before = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config.items() <= before.items()
    assert equal(load_model(tmp_path / "one"), load_model(tmp_path / "two"))
    with pytest.raises(InputError, match="exists and is not empty"):
        write_peft(read_peft(tmp_path / "one"), tokenizer, tmp_path / "two")


def test_a_base_beside_the_adapter_is_found(base_dir, tmp_path):
    shutil.copytree(base_dir, tmp_path / "base")
    handwritten(tmp_path / "adapter", "../base", ("q_proj",))
    assert load_model(tmp_path / "adapter").config == ARCHITECTURE


LAYER = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"use_dora": True}, {}, "not supported: use_dora = True"),
        ({"rank_pattern": {"q_proj": 8}}, {}, "not supported: rank_pattern"),
        ({"peft_type": "IA3"}, {}, "peft_type = 'IA3' is not supported; expected 'LORA'"),
        ({"bias": "all"}, {}, "bias = 'all' is not supported"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights = 'pissa' is not supported"),
        ({"modules_to_save": ["lm_head"]}, {}, "not supported: modules_to_save = ['lm_head']"),
        ({"r": 0}, {}, "r must be a whole number above 0, found 0"),
        ({"lora_alpha": "16"}, {}, "lora_alpha must be a number, found '16'"),
        ({"lora_alpha": 0}, {}, "adapter.alpha must be greater than 0"),
        ({"r": 8}, {}, "should have one shape and rank 8"),
        ({"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}, {}, "Llama-2-7b-hf' is not on this machine"),
        ({"base_model_name_or_path": None}, {}, "base_model_name_or_path None is not on this machine"),
        ({}, {LAYER.format(1): None}, "layers.1.self_attn.q_proj has no lora_A, though layers behind it do"),
        ({}, {LAYER.format(2): None}, "does not fit its base"),
        ({}, {LAYER.format(3): np.zeros((4, 64), np.float32)}, "does not fit its base"),
        ({}, {LAYER.format(0): np.zeros((4, 32), np.float32)}, "should have one shape"),
        ({}, {"base_model.model.lm_head.lora_A.weight": np.zeros((4, 64), np.float32)}, "lm_head.lora_A.weight"),
        ({}, {LAYER.format(0).replace("q_proj", "w_proj"): np.zeros((4, 64), np.float32)}, "self_attn.w_proj is no"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_understood_is_refused(fields, tensors, words, base_dir, tmp_path):
    handwritten(tmp_path / "adapter", base_dir, ("q_proj",), tensors=tensors.items(), **fields)
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "adapter")
    assert words in str(error.value) and str(tmp_path / "adapter") in str(error.value)


def test_an_adapter_without_its_matrices_is_refused(base_dir, tmp_path):
    handwritten(tmp_path / "adapter", base_dir, ("q_proj",))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no such file"):
        load_model(tmp_path / "adapter")


# ---- runs

RECIPE = """
from uner_jax.model.adapters import AdapterConfig
from uner_jax.training.config import *
def config():
    return {recipe!r}
"""


@pytest.fixture(scope="module")
def recipe(shared_data, tokenizer, base_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    rows = [row for _, row in zip(range(24), read_rows(shared_data / "eval" / "mit-restaurant.json"), strict=False)]
    examples = [Example(row["id"], *encode_conversation(row, tokenizer)) for _, row in rows]
    build(examples, tokenizer, directory / "data", "short", {})
    return TrainConfig(
        run_dir=str(directory / "calm"),
        steps=8,
        model=ModelConfig(source=str(base_dir)),
        adapter=AdapterConfig(4, dropout=0.1, base="nf4"),
        data=DataConfig(dir=str(directory / "data"), name="short", batch_size=8, row_length=256),
        optimizer=OptimizerConfig(learning_rate=2e-2),
        checkpoint=CheckpointConfig(every=3, keep=2),
        mesh=MeshConfig(1, 1, 1),
    )


def rows_of(run_dir):
    path = Path(run_dir, "metrics.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses_of(run_dir):
    return [row["loss"] for row in rows_of(run_dir)]


def run(config):
    with jax.numpy_dtype_promotion("standard"):  # optax is not strict
        loop.train(config)
    return losses_of(config.run_dir)


@pytest.fixture(scope="module")
def calm(recipe):
    """The run left alone, on one device."""
    return run(recipe)


MESHES = """
import dataclasses, runpy, sys
from uner_jax.training import config as c, loop
recipe = runpy.run_path(sys.argv[1])["config"]()
for shape in ((1, 8, 1), (2, 2, 2)):
    run_dir = sys.argv[2] + "x".join(map(str, shape))
    loop.train(dataclasses.replace(recipe, run_dir=run_dir, mesh=c.MeshConfig(*shape)))
"""


def test_every_mesh_gives_the_losses_of_one_device(recipe, calm, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE.format(recipe=recipe))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-c", MESHES, str(tmp_path / "recipe.py"), str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Involuntary full rematerialization" not in ended.stderr
    for shape in ("1x8x1", "2x2x2"):
        assert losses_of(tmp_path / f"run{shape}") == pytest.approx(calm, rel=1e-5), shape


def test_a_killed_run_ends_as_an_undisturbed_one(recipe, calm, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE.format(recipe=recipe))
    run_dir = tmp_path / "killed"
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), str(tmp_path / "recipe.py"), "--run-dir", str(run_dir)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(rows_of(run_dir)) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert run(dataclasses.replace(recipe, run_dir=str(run_dir))) == calm
    assert equal(load_model(run_dir), load_model(recipe.run_dir))


def test_training_lowers_the_loss_and_saves_adapters_only(recipe, calm):
    assert calm[-1] < 0.9 * calm[0]
    adapter = read_adapter(recipe.run_dir)
    assert adapter.config == recipe.adapter and adapter.base == recipe.model.source
    assert all(".adapter." in name for name in adapter.leaves) and len(adapter.leaves) == 14
    assert all(np.any(leaf) for leaf in adapter.leaves.values())


@pytest.mark.parametrize(
    "changes",
    [{"rank": 2}, {"alpha": 4.0}, {"dropout": 0.0}, {"targets": ("q_proj", "v_proj")}, {"base": "int8"}, {"rank": 0}],
)
def test_every_field_changes_what_a_run_does(changes, recipe, calm, tmp_path):
    if changes == {"rank": 0}:
        changes = {"rank": 0, "base": "float32"}
    adapter = dataclasses.replace(recipe.adapter, **changes)
    found = run(dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), steps=2, adapter=adapter))
    assert found != pytest.approx(calm[:2], rel=1e-6)


def convert(*arguments):
    dispatch(["convert", *map(str, arguments)])


def leave(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["convert", *map(str, arguments)])
    return exit.value.code, capsys.readouterr().err


def test_adapters_are_merged_or_kept(recipe, calm, base_dir, tmp_path, capsys):
    convert("to-hf", recipe.run_dir, tmp_path / "merged")
    merged, trained = load_model(tmp_path / "merged"), load_model(recipe.run_dir)
    assert equal(merged, trained) and not equal(merged, load_model(base_dir))
    convert("to-hf", recipe.run_dir, tmp_path / "kept", "--adapter", "keep")
    kept, adapter = read_adapter(tmp_path / "kept"), read_adapter(recipe.run_dir)
    assert kept.leaves.keys() == adapter.leaves.keys()
    assert all(np.array_equal(kept.leaves[name], leaf) for name, leaf in adapter.leaves.items())
    assert kept.config == dataclasses.replace(adapter.config, base="float32")
    assert kept.base == str(base_dir)
    code, error = leave(["to-hf", base_dir, tmp_path / "none", "--adapter", "keep"], capsys)
    assert code == 1 and f"{base_dir}: has no adapters to keep" in error and not (tmp_path / "none").exists()


def test_a_base_that_is_gone_or_another_is_refused(recipe, calm, base_dir, tmp_path):
    def moved(source):
        shutil.copytree(base_dir, source)
        return dataclasses.replace(
            recipe, run_dir=str(tmp_path / "run"), model=ModelConfig(source=str(source)), steps=1
        )

    config = moved(tmp_path / "base")
    run(config)
    weights = tmp_path / "base" / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(InputError, match="holds adapters of another model than now lies in"):
        load_model(config.run_dir)
    with pytest.raises(InputError, match=r"was trained on other data \(base \w+ -> \w+\)"):
        run(dataclasses.replace(config, steps=2))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError, match=r"holds adapters only, and their base .* is gone"):
        load_model(config.run_dir)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": -1}, "adapter.rank must be at least 0, found -1"),
        ({"alpha": 0.0}, "adapter.alpha must be greater than 0, found 0.0"),
        ({"dropout": 1.0}, "adapter.dropout must be in 0..1, without 1, found 1.0"),
        ({"dropout": float("nan")}, "adapter.dropout must be in 0..1, without 1, found nan"),
        ({"targets": ()}, "adapter.targets is empty"),
        ({"rank": 0, "base": "nf4"}, "adapter.base nf4 freezes the model; set adapter.rank too"),
    ],
)
def test_a_wrong_value_is_refused(fields, words):
    with pytest.raises(InputError) as error:
        AdapterConfig(**{"rank": 4} | fields)
    assert words in str(error.value)


def test_adapters_without_a_model_are_refused(recipe, tmp_path):
    with pytest.raises(InputError, match=r"adapters need a model to adapt; set model\.source"):
        run(dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), model=ModelConfig(architecture=ARCHITECTURE)))
    assert not list(tmp_path.iterdir())
