"""Weights come through every format bit for bit, and what is wrong with a file is said in one line."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file
from tiny_gguf import gguf_fields, write_gguf
from transformers import AutoConfig

from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, unflatten
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights import hf, load_model, load_model_tokenizer
from uner_jax.weights.checkpoint import checkpoint_directory, config_of, metadata_of, model_items, write_checkpoint
from uner_jax.weights.hf import write_hf
from uner_jax.weights.hf_config import FAMILIES, REQUIRED, SIZES, config_from_hf, config_to_hf
from uner_jax.weights.load import load_config

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rms_norm_eps=2**-16,  # exact in GGUF's float32 too
    rope_theta=5000.0,
)
CONFIGS = {
    "plain": CONFIG,
    "tied": dataclasses.replace(CONFIG, tie_word_embeddings=True, num_key_value_heads=4),
    "mistral": dataclasses.replace(CONFIG, family="mistral", sliding_window=48),
    "qwen2": dataclasses.replace(CONFIG, family="qwen2"),
    "smollm3": dataclasses.replace(CONFIG, family="smollm3", layers_without_rope=(1,), tie_word_embeddings=True),
    "biases": dataclasses.replace(
        CONFIG,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling=RopeScaling("llama3", 4.0, original_max_position_embeddings=32),
    ),
}


def random_model(config: LlamaConfig, dtype: Any = jnp.float32) -> Llama:
    """A model whose parameters are drawn by name, none of them 0 or 1 throughout."""

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        return jnp.asarray(0.3 * values, dtype)

    model = abstract_model(config)
    return unflatten(model, {name: draw(name, leaf.shape) for name, leaf in flatten(model).items()})


@pytest.fixture(scope="session")
def tokenizer(shared_data) -> Tokenizer:
    return load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert np.asarray(found[name]).tobytes() == np.asarray(tensor).tobytes(), name


def assert_same_model(found: Llama, expected: Llama):
    assert found.config == expected.config
    assert_same_bits(flatten(found), flatten(expected))


def tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a Hugging Face directory."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


# ---- round trips


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_hugging_face_directory_comes_through_bit_for_bit(name, dtype, tokenizer, tmp_path):
    model = random_model(CONFIGS[name], dtype)
    write_hf(model, tokenizer, tmp_path / "first")
    loaded = load_model(tmp_path / "first", dtype=None)
    assert_same_model(loaded, model)
    assert loaded.compute_dtype == dtype
    write_hf(loaded, load_model_tokenizer(tmp_path / "first"), tmp_path / "second")
    assert_same_bits(tensors(tmp_path / "second"), tensors(tmp_path / "first"))
    for path in (tmp_path / "first").glob("*.json"):
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert load_config(tmp_path / "first") == CONFIGS[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_comes_through_bit_for_bit(name, dtype, tokenizer, tmp_path):
    model = random_model(CONFIGS[name], dtype)
    (tmp_path / "checkpoint").mkdir()  # an empty directory is no obstacle
    write_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    loaded = load_model(tmp_path / "checkpoint", dtype=None)
    assert_same_model(loaded, model)
    assert loaded.compute_dtype == dtype
    assert load_config(tmp_path / "checkpoint") == CONFIGS[name]
    found = load_model_tokenizer(tmp_path / "checkpoint")
    assert found.fingerprint == tokenizer.fingerprint
    assert (found.bos_id, found.eos_id, found.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert found.encode("Once upon a time") == tokenizer.encode("Once upon a time")


def test_a_checkpoint_that_is_older_than_a_field_of_the_config_has_its_default():
    fields = through_json(dataclasses.asdict(CONFIG))
    for name in ("family", "sliding_window", "layers_without_rope"):
        del fields[name]
    assert config_of({"model_config": fields}) == CONFIG


def test_what_the_family_of_a_config_has_no_field_for_is_not_written(tokenizer, tmp_path):
    for name, value in {"sliding_window": 48, "layers_without_rope": (1,)}.items():
        model = random_model(dataclasses.replace(CONFIG, **{name: value}))
        with pytest.raises(InputError, match=f"a model of the family 'llama' has no {name} in Hugging Face's form"):
            write_hf(model, tokenizer, tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_a_model_is_written_and_read_in_the_dtype_asked_for(tokenizer, tmp_path):
    model = random_model(CONFIG)
    rounded = {name: leaf.astype(jnp.bfloat16) for name, leaf in flatten(model).items()}
    write_hf(model, tokenizer, tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    write_hf(model, tokenizer, tmp_path / "full")
    write_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    for name in ("full", "half", "checkpoint"):
        loaded = load_model(tmp_path / name, dtype=jnp.bfloat16)
        assert_same_bits(flatten(loaded), rounded)
        assert loaded.compute_dtype == jnp.bfloat16
    # float32 is the default, whatever the file has.
    assert {leaf.dtype for leaf in flatten(load_model(tmp_path / "half")).values()} == {jnp.dtype("float32")}


def test_a_file_has_each_matrix_out_by_in_with_the_heads_side_by_side(tokenizer, tmp_path):
    model = random_model(CONFIGS["biases"])
    write_hf(model, tokenizer, tmp_path / "model")
    found, leaves = tensors(tmp_path / "model"), flatten(model)
    x_D, mixed_HDh, inner_F = (np.random.default_rng(0).normal(size=shape) for shape in (32, (4, 8), 24))
    for theirs, ours, x in [
        ("self_attn.q_proj", "attention.query", x_D),
        ("self_attn.v_proj", "attention.value", x_D),
        ("self_attn.o_proj", "attention.output", mixed_HDh),
        ("mlp.up_proj", "mlp.up", x_D),
        ("mlp.down_proj", "mlp.down", inner_F),
    ]:
        expected = np.tensordot(x, np.asarray(leaves[f"layers.{ours}.kernel"][1]), axes=x.ndim)
        expected = (expected + np.asarray(leaves[f"layers.{ours}.bias"][1])).ravel()
        weight, bias = (found[f"model.layers.1.{theirs}.{kind}"] for kind in ("weight", "bias"))
        assert weight.shape == (expected.size, x.size)
        np.testing.assert_allclose(weight @ x.ravel() + bias, expected, rtol=0, atol=1e-6)


def test_weights_in_many_shards_are_the_same_weights(tokenizer, tmp_path, monkeypatch):
    model = random_model(CONFIGS["biases"])
    write_hf(model, tokenizer, tmp_path / "one")
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    monkeypatch.setattr(hf, "SHARD_BYTES", 5000)
    write_hf(model, tokenizer, tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert [path.name for path in files] == [
        f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))
    ]
    assert {name: path.name for path in files for name in load_file(path)} == index["weight_map"]
    for path in files:
        shard = load_file(path)
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 5000
    expected = tensors(tmp_path / "one")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert_same_bits(tensors(tmp_path / "many"), expected)
    assert_same_model(load_model(tmp_path / "many"), model)


def test_a_training_run_means_its_newest_checkpoint(tokenizer, tmp_path):
    for step, config in ((9, CONFIGS["tied"]), (10, CONFIGS["plain"])):
        write_checkpoint(random_model(config), tokenizer, tmp_path / "checkpoints" / str(step))
    (tmp_path / "checkpoints" / "11").mkdir()  # one that was never finished
    assert checkpoint_directory(tmp_path) == tmp_path / "checkpoints" / "10"
    assert_same_model(load_model(tmp_path), random_model(CONFIGS["plain"]))
    assert load_model_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_copies_that_old_exports_carry_are_left_out(tokenizer, tmp_path):
    model = random_model(CONFIGS["tied"])
    write_hf(model, tokenizer, tmp_path / "model")
    more = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for layer in range(2)}
    found = tensors(tmp_path / "model")
    more["lm_head.weight"] = found["model.embed_tokens.weight"]
    save_file(found | more, tmp_path / "model" / "model.safetensors")
    assert_same_model(load_model(tmp_path / "model"), model)


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
from uner_jax.mesh import make_mesh
from uner_jax.model.parameters import flatten, tree_shardings
from uner_jax.weights import load_model

jax.config.update("jax_numpy_dtype_promotion", "strict")
assert jax.device_count() == 8
mesh = make_mesh(data=2, fsdp=2, tensor=2)
tokens_BT = np.random.default_rng(0).integers(512, size=(4, 6), dtype=np.int32)

@jax.jit
def logits(model):
    return model(tokens_BT)


for path in sys.argv[1:]:
    one, many = load_model(path), load_model(path, mesh=mesh)
    shardings = flatten(tree_shardings(one, mesh))
    for name, leaf in flatten(many).items():
        expected = flatten(one)[name]
        assert expected.sharding.num_devices == 1
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), name
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes(), name
        cut = "kernel" in name or name in ("embedding", "head")
        assert leaf.addressable_shards[0].data.size == leaf.size // (4 if cut else 1), name
    with jax.set_mesh(mesh):
        found = logits(many)
    np.testing.assert_allclose(found, logits(one), rtol=0, atol=1e-5)
    print("same", path)
"""


def test_a_model_on_eight_devices_is_the_model_on_one(tokenizer, tmp_path):
    model = random_model(CONFIG)
    write_hf(model, tokenizer, tmp_path / "directory")
    write_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    write_float32_gguf(tmp_path / "model.gguf", tensors(tmp_path / "directory"), gguf_fields(CONFIG))
    write_hf(random_model(dataclasses.replace(CONFIG, family="qwen3")), tokenizer, tmp_path / "qwen3")
    paths = [str(tmp_path / name) for name in ("directory", "checkpoint", "model.gguf", "qwen3")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_EIGHT_DEVICES, *paths],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"same {path}" for path in paths]


# ---- GGUF


def write_float32_gguf(path: Path, weights: dict[str, np.ndarray], fields: dict[str, Any]):
    """A GGUF of Hugging Face's tensors, not quantised."""
    write_gguf(path, {name: (Kind.F32, tensor) for name, tensor in weights.items()}, fields, CONFIG.head_dim)


@pytest.mark.parametrize("name", ["plain", "tied"])
def test_a_gguf_is_the_model_of_its_directory(name, tokenizer, tmp_path):
    config = dataclasses.replace(CONFIGS[name], attention_bias=True, mlp_bias=True)
    write_hf(random_model(config), tokenizer, tmp_path / "model")
    write_float32_gguf(tmp_path / "model.gguf", tensors(tmp_path / "model"), gguf_fields(config))
    loaded = load_model(tmp_path / "model.gguf", dtype=None)
    assert_same_model(loaded, random_model(config))


@pytest.fixture(scope="session")
def smollm2(smollm2_path) -> Llama:
    return load_model(smollm2_path)


def test_a_real_gguf_is_read_and_knows_a_capital(smollm2):
    config = smollm2.config
    assert smollm2.head is None
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.head_dim) == (49152, 576, 30, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (9, 3, 1536)
    assert (config.rope_theta, config.max_position_embeddings, config.tie_word_embeddings) == (100_000.0, 8192, True)
    # "The capital of France is", and " Paris"; reading the tokenizer too would take as long as the rest.
    tokens_BT = np.asarray([[504, 3575, 282, 4649, 314]], np.int32)
    assert jax.jit(lambda model: model(tokens_BT)[0, -1].argmax())(smollm2) == 7042


# ---- configs

positive = st.integers(1, 64)


@st.composite
def configs(draw) -> LlamaConfig:
    """Any that Hugging Face's model of its family can be."""
    family = draw(st.sampled_from(list(FAMILIES)))
    about = FAMILIES[family]
    layers, kv_heads = draw(positive), draw(st.integers(1, 8))
    number = st.floats(0.125, 1e6)
    linear = st.builds(RopeScaling, st.just("linear"), number)
    llama3 = st.builds(RopeScaling, st.just("llama3"), number, number, number, st.integers(1, 10**6))
    without_rope = st.sets(st.integers(0, layers - 1)) if family == "smollm3" else st.just(())
    return LlamaConfig(
        vocab_size=draw(positive),
        hidden_size=draw(positive) * 2,
        intermediate_size=draw(positive),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * draw(st.integers(1, 8)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(positive),
        max_position_embeddings=draw(st.integers(1, 10**6)),
        rms_norm_eps=draw(st.floats(1e-8, 1e-3)),
        rope_theta=draw(number),
        rope_scaling=draw(st.none() | linear | llama3),
        tie_word_embeddings=draw(st.booleans()),
        family=family,
        sliding_window=draw(st.none() | st.integers(1, 10**6)) if about.window else None,
        layers_without_rope=tuple(sorted(draw(without_rope))),
        **{switch: draw(st.booleans()) for switch in about.switches},
    )


def through_json(fields: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(fields))


def as_transformers_4(config: LlamaConfig, kind_key: str) -> dict[str, Any]:
    """The fields as transformers 4 wrote them."""
    fields = config_to_hf(config) | {"torch_dtype": "bfloat16"}
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    fields["rope_scaling"] = None if kind == "default" else rope | dict.fromkeys(kind_key.split("+"), kind)
    return fields


@given(configs())
def test_a_config_comes_back_from_the_fields_of_either_transformers(config):
    assert config_from_hf(through_json(config_to_hf(config)), "config.json") == config
    for kind_key in ("type", "rope_type", "type+rope_type"):
        assert config_from_hf(through_json(as_transformers_4(config, kind_key)), "config.json") == config


@settings(max_examples=20, deadline=None)
@given(configs())
def test_a_config_comes_back_from_what_transformers_makes_of_it(config):
    fields = config_to_hf(config) | {"hidden_size": config.num_attention_heads * config.head_dim}
    found = config_from_hf(through_json(AutoConfig.for_model(**fields).to_dict()), "config.json")
    assert found == dataclasses.replace(config, hidden_size=fields["hidden_size"])


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_left_out_have_the_values_of_transformers(family):
    sizes = {name: getattr(CONFIG, name) for name in SIZES} | {"hidden_size": 64, "num_attention_heads": 32}
    fields = {"model_type": family} | sizes
    bare = config_from_hf(fields, "config.json")
    assert config_from_hf(AutoConfig.for_model(family, **sizes).to_dict(), "config.json") == bare
    defaults = dict.fromkeys([*FAMILIES[family].defaults(), "rope_theta", "rope_scaling"])
    assert config_from_hf(fields | defaults, "config.json") == bare
    # where a null stands, and no default: what follows from the other sizes.
    derived = config_from_hf(fields | {"num_key_value_heads": None, "head_dim": None}, "config.json")
    assert (derived.num_key_value_heads, derived.head_dim) == (32, 2)


def published(model_type: str, sizes: str, **fields) -> dict[str, Any]:
    """A config.json as it is published; sizes: vocabulary, width, MLP, layers, heads, key-value heads, length."""
    names = [*SIZES, "num_key_value_heads", "max_position_embeddings"]
    whole = dict(zip(names, map(int, sizes.split()), strict=True))
    always = {"architectures": ["X"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True}
    return whole | always | {"model_type": model_type, "hidden_act": "silu", "torch_dtype": "bfloat16"} | fields


LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
QWEN = {"use_sliding_window": False, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
# with what is to be read out of them
PUBLISHED = {
    "LLaMA 1 7B": (published("llama", "32000 4096 11008 32 32 32 2048", max_sequence_length=2048), {"head_dim": 128}),
    "Llama 2 70B": (
        published("llama", "32000 8192 28672 80 64 8 4096", pretraining_tp=1, rope_scaling=None, rms_norm_eps=1e-5),
        {"longest_row": 4096, "rope_scaling": None},
    ),
    "Llama 3 8B": (published("llama", "128256 4096 14336 32 32 8 8192", rope_theta=5e5), {"rope_theta": 5e5}),
    "Llama 3.1 8B": (
        published(
            "llama",
            "128256 4096 14336 32 32 8 131072",
            rope_scaling=LLAMA3_ROPE | {"factor": 8.0, "rope_type": "llama3"},
        ),
        {"rope_scaling": RopeScaling("llama3", 8.0), "longest_row": 131_072},
    ),
    "Llama 3.2 1B": (
        published(
            "llama",
            "128256 2048 8192 16 32 8 131072",
            head_dim=64,
            tie_word_embeddings=True,
            rope_scaling=LLAMA3_ROPE | {"factor": 32.0, "rope_type": "llama3"},
        ),
        {"rope_scaling": RopeScaling("llama3", 32.0), "tie_word_embeddings": True},
    ),
    "Mistral 7B": (
        published("mistral", "32000 4096 14336 32 32 8 32768", sliding_window=4096),
        {"longest_row": 4096, "head_dim": 128},
    ),
    "Mistral 7B 0.3": (
        published("mistral", "32768 4096 14336 32 32 8 32768", sliding_window=None, rope_theta=1e6),
        {"longest_row": 32_768},
    ),
    "Mistral Nemo": (
        published("mistral", "131072 5120 14336 40 32 8 131072", sliding_window=None, head_dim=128),
        {"head_dim": 128, "longest_row": 131_072},
    ),
    "Qwen2 7B": (
        published("qwen2", "152064 3584 18944 28 28 4 131072", sliding_window=131_072, max_window_layers=28, **QWEN),
        {"sliding_window": None, "longest_row": 131_072, "query_key_value_bias": True, "attention_bias": False},
    ),
    "Qwen2.5 0.5B": (
        published(
            "qwen2",
            "151936 896 4864 24 14 2 32768",
            sliding_window=32_768,
            max_window_layers=24,
            tie_word_embeddings=True,
            use_mrope=False,
            **QWEN,
        ),
        {"head_dim": 64, "tie_word_embeddings": True},
    ),
    "Qwen3 0.6B": (
        published(
            "qwen3",
            "151936 1024 3072 28 16 8 40960",
            head_dim=128,
            attention_bias=False,
            sliding_window=None,
            max_window_layers=28,
            tie_word_embeddings=True,
            rope_scaling=None,
            **QWEN,
        ),
        {"head_dim": 128, "query_key_norm": True, "query_key_value_bias": False},
    ),
    "SmolLM2 135M": (
        published(
            "llama", "49152 576 1536 30 9 3 8192", is_llama_config=True, rope_interleaved=False, rope_theta=100_000
        ),
        {"head_dim": 64, "rope_theta": 100_000.0},
    ),
    "SmolLM3 3B": (
        published(
            "smollm3",
            "128256 2048 11008 36 16 4 65536",
            attention_bias=False,
            mlp_bias=False,
            layer_types=["full_attention"] * 36,
            max_window_layers=28,
            no_rope_layer_interval=4,
            no_rope_layers=[1, 1, 1, 0] * 9,
            pretraining_tp=2,
            rope_theta=5e6,
            sliding_window=None,
            use_sliding_window=False,
        ),
        {"layers_without_rope": tuple(range(3, 36, 4)), "tie_word_embeddings": True, "sliding_window": None},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_they_are_meant(name):
    fields, expected = PUBLISHED[name]
    config = config_from_hf(fields, "config.json")
    assert config.family == fields["model_type"]
    assert {field: getattr(config, field) for field in expected} == expected


def layered(**change) -> dict[str, Any]:
    return config_to_hf(dataclasses.replace(CONFIG, family="qwen3")) | change


WINDOWS = {
    "none is used": (layered(sliding_window=8), None),
    "over all layers": (layered(use_sliding_window=True, sliding_window=8, layer_types=None, max_window_layers=0), 8),
    "behind the last layer": (
        layered(use_sliding_window=True, sliding_window=8, layer_types=None, max_window_layers=2),
        None,
    ),
    "of null": (layered(use_sliding_window=True, sliding_window=None, layer_types=None, max_window_layers=0), None),
    "over some layers": (
        layered(use_sliding_window=True, sliding_window=8, layer_types=None, max_window_layers=1),
        "sliding_attention in 1 of 2 layers with a window of 8 is not supported",
    ),
    "over layers, but none given": (layered(layer_types=["sliding_attention"] * 2), "with a window of None"),
    "too few kinds": (layered(layer_types=["full_attention"]), "layer_types must have"),
    "other kinds": (layered(layer_types=["full_attention", "chunked_attention"]), "layer_types must have"),
    "no number": (layered(sliding_window="8"), "sliding_window = '8'"),
    "below 0": (layered(max_window_layers=-1), "max_window_layers = -1"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_counts_where_all_layers_have_it(name):
    fields, expected = WINDOWS[name]
    if not isinstance(expected, str):
        assert config_from_hf(fields, "config.json").sliding_window == expected
        return
    with pytest.raises(InputError) as error:
        config_from_hf(fields, "config.json")
    assert expected in str(error.value)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WRONG_FIELDS = {
    "other architecture": ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported; expected one of 'llama'"),
    "no architecture": ({"model_type": None}, "model_type None"),
    "unknown field": ({"attn_logit_softcapping": 50.0, "a": 1}, "unknown field(s) a, attn_logit_softcapping"),
    "no size": ({"vocab_size": None}, "missing or not a whole number above 0: vocab_size"),
    "no heads": ({"num_attention_heads": 0}, "not a whole number above 0: num_attention_heads"),
    "architecture of a wrong type": ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
    "no finite base": ({"rope_parameters": {"rope_theta": math.inf}}, "rope_theta = inf"),
    "size of a wrong type": ({"hidden_size": "32"}, "not a whole number above 0: hidden_size"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of"),
    "key-value heads of a wrong type": ({"num_key_value_heads": "2"}, "num_key_value_heads = '2'"),
    "a bias that the family has not": ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias = True is not supported"),
    "layers that may rotate or not": (
        {"model_type": "smollm3", "no_rope_layers": [1, 2]},
        "no_rope_layers must have a 1 (rotary positions) or 0 (none) for each of the 2 layers",
    ),
    "odd heads": ({"head_dim": 7}, "head_dim 7 is odd"),
    "epsilon of a wrong type": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5'"),
    "bias of a wrong type": ({"mlp_bias": 1}, "mlp_bias = 1"),
    "other scaling": ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
    "other scaling, old": ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    "scaling without a factor": ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs ['factor'], found []"),
    "scaling without a length": ({"rope_parameters": LLAMA3}, "needs ['factor', 'high_freq_factor'"),
    "unknown scaling": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
        "found ['beta', 'factor']",
    ),
    "scaling of a wrong type": ({"rope_parameters": "linear"}, "'linear' is not supported; expected an object"),
    "factor of a wrong type": ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor = '2'"),
    "theta of a wrong type": ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta = -1.0"),
    "part of a head": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
}
UNSUPPORTED = {
    "hidden_act": "gelu",
    "attention_dropout": 0.1,
    "partial_rotary_factor": 0.5,
    "rope_interleaved": True,
    "use_mrope": True,
    "quantization_config": {"bits": 4},
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_field_that_is_wrong_is_named(name):
    change, words = WRONG_FIELDS[name]
    with pytest.raises(InputError) as error:
        config_from_hf(config_to_hf(CONFIG) | change, "model/config.json")
    assert str(error.value).startswith("model/config.json: ")
    assert words in str(error.value)


@pytest.mark.parametrize("field", REQUIRED)
def test_a_field_with_one_supported_value_refuses_others(field):
    fields = config_to_hf(CONFIG)
    for value in REQUIRED[field]:
        assert config_from_hf(fields | {field: value}, "config.json") == CONFIG
    with pytest.raises(InputError) as error:
        config_from_hf(fields | {field: UNSUPPORTED[field]}, "config.json")
    assert f"config.json: {field} = {UNSUPPORTED[field]!r} is not supported" in str(error.value)


# ---- errors name the file and the fix


@pytest.fixture(scope="session")
def sources(tokenizer, tmp_path_factory) -> Path:
    """One model in every format."""
    root, model = tmp_path_factory.mktemp("sources"), random_model(CONFIG)
    write_hf(model, tokenizer, root / "directory")
    write_checkpoint(model, tokenizer, root / "checkpoint")
    return root


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(directory: Path, change: Callable[[dict[str, np.ndarray]], Any]):
    found = tensors(directory)
    change(found)
    save_file(found, directory / "model.safetensors")


def cut_file(path: Path, count: int):
    path.write_bytes(path.read_bytes()[:-count])


def name_a_shard(directory: Path):
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


QUERY = "model.layers.1.self_attn.q_proj.weight"
DAMAGE = {
    "no config": (lambda d: (d / "config.json").unlink(), ["no model here", "config.json"]),
    "config no JSON": (lambda d: (d / "config.json").write_text("{"), ["config.json: not JSON"]),
    "config no object": (lambda d: (d / "config.json").write_text("[]"), ["config.json: expected a JSON object"]),
    "config of other sizes": (
        lambda d: edit_json(d / "config.json", lambda fields: fields.update(num_hidden_layers=1)),
        ["has unknown 9 tensor(s): model.layers.1.input_layernorm.weight", " ..."],
    ),
    "config of absurd sizes": (
        lambda d: edit_json(d / "config.json", lambda fields: fields.update(intermediate_size=2**60)),
        ["intermediate_size = 1152921504606846976 is no LLaMA's; expected 1 to 4,194,304"],
    ),
    "config of absurdly many layers": (
        lambda d: edit_json(d / "config.json", lambda fields: fields.update(num_hidden_layers=2**60)),
        ["config.json: num_hidden_layers = 1152921504606846976; expected at most 10000"],
    ),
    "missing tensor": (lambda d: edit_tensors(d, lambda t: t.pop(QUERY)), ["lacks 1 tensor(s)", QUERY]),
    "unknown tensor": (
        lambda d: edit_tensors(d, lambda t: t.update({"model.extra.weight": t[QUERY]})),
        ["has unknown 1 tensor(s): model.extra.weight"],
    ),
    "wrong shape": (
        lambda d: edit_tensors(d, lambda t: t.update({QUERY: t[QUERY].T.copy()[:, :8]})),
        [QUERY, "has shape (32, 8); the config says (32, 32)"],
    ),
    "truncated weights": (
        lambda d: cut_file(d / "model.safetensors", 100),
        ["model.safetensors: not readable as safetensors"],
    ),
    "weights that are text": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        ["model.safetensors: not readable as safetensors"],
    ),
    "missing shard": (name_a_shard, ["model-00002-of-00002.safetensors", "No such file"]),
    "index without a map": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"),
        ["model.safetensors.index.json: has no weight_map"],
    ),
    "pickled weights": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        ["pickled .bin weights only", "save them as safetensors"],
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["has neither model.safetensors nor"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_directory_is_said(name, sources, tmp_path):
    damage, words = DAMAGE[name]
    directory = tmp_path / "model"
    shutil.copytree(sources / "directory", directory)
    assert load_config(directory) == CONFIG
    damage(directory)
    with pytest.raises(InputError) as error:
        load_model(directory)
    for word in [str(directory), *words]:
        assert word in str(error.value)


def write_foreign(directory: Path, metadata: Any = None):
    shutil.rmtree(directory)
    ocp.save_checkpointables(epath.Path(directory), {"model": {"a": np.zeros(3)}}, custom_metadata=metadata)


def write_foreign_tree(directory: Path):
    shutil.rmtree(directory)
    ocp.save(epath.Path(directory), {"a": np.zeros(3)})


def write_old_foreign_tree(directory: Path):
    import orbax.checkpoint

    shutil.rmtree(directory)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, {"a": np.zeros(3)})


FOREIGN = "an Orbax checkpoint, but not one of format 'uner_jax/1'"
CHECKPOINT_DAMAGE = {
    "foreign": (write_foreign, FOREIGN),
    "foreign, of another format": (lambda d: write_foreign(d, {"format": "uner_jax/0"}), FOREIGN),
    "foreign, one tree": (write_foreign_tree, FOREIGN),
    "foreign, of the older Orbax": (write_old_foreign_tree, FOREIGN),
    "without a model": (lambda d: shutil.rmtree(d / "model"), "without its model"),
    "without a tokenizer": (lambda d: shutil.rmtree(d / "tokenizer"), "without its tokenizer"),
}


@pytest.mark.parametrize("name", CHECKPOINT_DAMAGE)
def test_what_is_wrong_with_a_checkpoint_is_said(name, sources, tmp_path):
    damage, words = CHECKPOINT_DAMAGE[name]
    directory = tmp_path / "checkpoint"
    shutil.copytree(sources / "checkpoint", directory)
    assert load_config(directory) == CONFIG
    damage(directory)
    for load in (load_model, load_model_tokenizer):
        with pytest.raises(InputError) as error:
            load(directory)
        assert f"{directory}: " in str(error.value)
        assert words in str(error.value)


def test_a_checkpoint_whose_parameters_do_not_fit_its_config_is_refused(tokenizer, tmp_path):
    changes = {
        "missing": (lambda found: found.pop("norm.scale"), "norm.scale is not there; the config says (32,)"),
        "unknown": (lambda found: found.update(extra=jnp.zeros(2)), "extra is (2,); the config says not there"),
        "shape": (
            lambda found: found.update(embedding=jnp.zeros((3, 32))),
            "embedding is (3, 32); the config says (512",
        ),
    }
    for name, (change, words) in changes.items():
        model = random_model(CONFIG)
        items = model_items(model, tokenizer)
        change(items["model"])
        ocp.save_checkpointables(epath.Path(tmp_path / name), items, custom_metadata=metadata_of(model.config))
        with pytest.raises(InputError) as error:
            load_model(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert words in str(error.value)


FIELDS = gguf_fields(CONFIG)
GGUF_DAMAGE = {
    "other architecture": (FIELDS | {"general.architecture": "gemma"}, "architecture 'gemma' is not supported"),
    "scaling": (FIELDS | {"llama.rope.scaling.type": "linear"}, "rotary scaling of a GGUF file is not supported"),
    "experts": (FIELDS | {"llama.expert_count": 8}, "mixture of experts"),
    "part of a head": (FIELDS | {"llama.rope.dimension_count": 4}, "rotary positions on a part of each head"),
    "one part of two": (FIELDS | {"split.count": 2}, "one of several parts of a model"),
    "missing field": (
        {name: value for name, value in FIELDS.items() if name != "llama.block_count"},
        "llama.block_count must be a positive number, found None",
    ),
    "no heads": (FIELDS | {"llama.attention.head_count": 0}, "llama.attention.head_count must be a positive number"),
    "other heads": (
        FIELDS | {"llama.attention.head_count": 3, "llama.attention.head_count_kv": 3},
        "k_proj.weight has shape (16, 32); the config says (24, 32)",
    ),
    "heads that do not divide": (
        FIELDS | {"llama.attention.head_count_kv": 3},
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ),
    "other layers": (FIELDS | {"llama.block_count": 3}, "lacks 9 tensor(s): model.layers.2.input_layernorm.weight"),
}


@pytest.mark.parametrize("name", GGUF_DAMAGE)
def test_what_is_wrong_with_the_fields_of_a_gguf_is_said(name, sources, tmp_path):
    fields, words = GGUF_DAMAGE[name]
    path = tmp_path / "model.gguf"
    write_float32_gguf(path, tensors(sources / "directory"), fields)
    with pytest.raises(InputError) as error:
        load_model(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)


def test_what_is_wrong_with_the_tensors_of_a_gguf_is_said(sources, tmp_path):
    whole = tensors(sources / "directory")
    embedding, gate = "model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"
    changes = [
        ({name: tensor for name, tensor in whole.items() if name != embedding}, "lacks the tensor token_embd.weight"),
        ({name: tensor for name, tensor in whole.items() if name != gate}, f"lacks 1 tensor(s): {gate}"),
        (whole | {"rope_freqs.weight": np.arange(1, 5, dtype=np.float32)}, "rope_freqs are not those of Llama 3.1"),
        (whole | {"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs are not those of Llama 3.1"),
        (whole | {"extra.weight": np.ones(4, np.float32)}, "tensor 'extra.weight' is not one of a LLaMA"),
        (whole | {gate: whole[gate][:8]}, f"{gate} has shape (8, 32); the config says (24, 32)"),
    ]
    for number, (weights, words) in enumerate(changes):
        path = tmp_path / f"{number}.gguf"
        write_float32_gguf(path, weights, FIELDS)
        with pytest.raises(InputError) as error:
            load_model(path)
        assert str(error.value).startswith(f"{path}: ")
        assert words in str(error.value)


def test_a_gguf_cut_anywhere_is_refused(sources, tmp_path):
    path = tmp_path / "model.gguf"
    write_float32_gguf(path, tensors(sources / "directory"), FIELDS)
    whole = path.read_bytes()
    header = whole.index(b"output_norm.weight")
    # the last bytes may be padding behind the last tensor.
    for length in (*range(0, header + 100, 7), len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as error:
            load_model(path)
        assert str(error.value).startswith(f"{path}: not readable as GGUF"), length


def test_a_path_that_is_no_model_is_named(tmp_path):
    (tmp_path / "notes.gguf").write_text("these are notes, renamed by mistake\n" * 3)
    (tmp_path / "weights.safetensors").write_bytes(b"12345678")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "absent": "no such file or directory",
        "notes.gguf": "not readable as GGUF: GGUF magic invalid",
        "weights.safetensors": "a model is a directory or a .gguf file",
        "empty": "no model here: neither config.json (Hugging Face) nor a checkpoint of ours",
    }.items():
        with pytest.raises(InputError) as error:
            load_model(str(tmp_path / name))
        assert str(error.value).startswith(f"{tmp_path / name}: {words}")


@pytest.mark.parametrize("write", [write_hf, write_checkpoint])
def test_nothing_is_written_over(write, tokenizer, tmp_path):
    model = random_model(CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("five years")
    (tmp_path / "file").write_text("five years")
    for name in ("full", "file"):
        with pytest.raises(InputError, match=f"{tmp_path / name}: exists and is not empty"):
            write(model, tokenizer, tmp_path / name)
    assert (tmp_path / "full" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "five years"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.tex"]
    write(model, tokenizer, tmp_path / "new" / "deep")
    assert_same_model(load_model(tmp_path / "new" / "deep"), model)


def test_a_directory_that_could_not_be_finished_does_not_appear(tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(hf, "write_tensor_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_hf(random_model(CONFIG), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    write_hf(random_model(CONFIG), tokenizer, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
