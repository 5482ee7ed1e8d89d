"""Weights come through every format bit for bit, and what is wrong with a file is said in one line."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig as HFLlamaConfig

from uner_jax.model.config import OPTIONAL, REQUIRED, SIZES, LlamaConfig, RopeScaling, config_from_hf, config_to_hf
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, unflatten
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights import hf, load_model, load_model_tokenizer
from uner_jax.weights.checkpoint import checkpoint_directory, metadata_of, model_items, write_checkpoint
from uner_jax.weights.gguf import BLOCK_NAMES, OUTER_NAMES
from uner_jax.weights.hf import write_hf
from uner_jax.weights.load import load_config

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=5000.0,
)
CONFIGS = {
    "plain": CONFIG,
    "tied": dataclasses.replace(CONFIG, tie_word_embeddings=True, num_key_value_heads=4),
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
        return jnp.asarray(np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape), dtype)

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
    return {name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()}


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
for path in sys.argv[1:]:
    one, many = load_model(path), load_model(path, mesh=mesh)
    shardings = flatten(tree_shardings(one, mesh))
    for name, leaf in flatten(many).items():
        expected = flatten(one)[name]
        assert expected.sharding.num_devices == 1
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), name
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes(), name
        cut = "kernel" in name or name in ("embedding", "head")
        assert leaf.addressable_shards[0].data.size == leaf.size // (4 if cut else shards(name)), name
    with jax.set_mesh(mesh):
        found = jax.jit(lambda model: model(tokens_BT))(many)
    np.testing.assert_allclose(found, jax.jit(lambda model: model(tokens_BT))(one), rtol=0, atol=1e-5)
    print("same", path)
"""


def test_a_model_on_eight_devices_is_the_model_on_one(tokenizer, tmp_path):
    model = random_model(CONFIG)
    write_hf(model, tokenizer, tmp_path / "directory")
    write_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    write_gguf(tmp_path / "model.gguf", model, tokenizer, tmp_path / "directory")
    paths = [str(tmp_path / name) for name in ("directory", "checkpoint", "model.gguf")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_EIGHT_DEVICES, *paths],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"same {path}" for path in paths]
