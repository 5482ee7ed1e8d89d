"""Mistral, Qwen and SmolLM3 go the way of every LLaMA: through commands, adapters, training's checks, extraction."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from byte_level import write_directory
from safetensors.numpy import load_file
from tiny_model import blank_model, random_model

from uner_jax.cli import dispatch
from uner_jax.extraction.extractor import Extractor
from uner_jax.model.adapters import AdapterConfig, adapt, join, merge, split
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import flatten
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.training.config import DataConfig, TrainConfig
from uner_jax.training.shapes import check_architecture
from uner_jax.weights.hf import write_hf

BASE = LlamaConfig(
    vocab_size=304,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=2048,
)
WINDOW = 160
FAMILIES = {
    "mistral": dataclasses.replace(BASE, family="mistral", sliding_window=WINDOW),
    "qwen2": dataclasses.replace(BASE, family="qwen2", tie_word_embeddings=True),
    "qwen3": dataclasses.replace(BASE, family="qwen3"),
    "smollm3": dataclasses.replace(BASE, family="smollm3", layers_without_rope=(1,)),
}
pytestmark = pytest.mark.usefixtures("quick_compilation")
TEXT = "A virtual assistant answers questions about Ada Lovelace, who lived in London. USER: ASSISTANT: []"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_directory(directory, [TEXT] * 3, "qwen2", size=300)
    return load_tokenizer(directory)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request, tokenizer, tmp_path_factory) -> Path:
    """A Hugging Face directory of a family, with its tokenizer."""
    path = tmp_path_factory.mktemp("model") / request.param
    write_hf(random_model(FAMILIES[request.param]), tokenizer, path)
    return path


def test_what_goes_through_the_commands_comes_out_as_it_was(directory, tmp_path):
    dispatch(["convert", "from-hf", str(directory), str(tmp_path / "ours")])
    dispatch(["convert", "to-hf", str(tmp_path / "ours"), str(tmp_path / "theirs")])
    fields = json.loads((directory / "config.json").read_text())
    assert fields["model_type"] == directory.name
    for path in directory.glob("*.json"):
        assert (tmp_path / "theirs" / path.name).read_bytes() == path.read_bytes(), path.name
    before, after = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "theirs"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)


def test_the_window_is_all_that_extraction_has_for_prompt_and_answer(tokenizer):
    # whole, the model reads 2048 tokens.
    Extractor(blank_model(dataclasses.replace(FAMILIES["mistral"], sliding_window=None)), tokenizer)
    with pytest.raises(InputError, match="the model reads 160 tokens, which is too few"):
        Extractor(blank_model(FAMILIES["mistral"]), tokenizer)


@pytest.mark.parametrize("name", ["qwen3", "smollm3"])
def test_adapters_over_quantised_kernels_merge_into_what_they_compute(name):
    tokens_BT = np.random.default_rng(0).integers(BASE.vocab_size, size=(2, 12), dtype=np.int32)
    run = jax.jit(lambda model: model(tokens_BT))
    plain = run(random_model(FAMILIES[name]))
    adapted = adapt(random_model(FAMILIES[name]), AdapterConfig(2, base="int8"), jax.random.key(0))
    trained, frozen = split(adapted)
    assert all(".adapter." in leaf for leaf in flatten(trained))
    grown = jax.tree.map(lambda x: x + jnp.float32(0.1), trained)
    expected = run(join(grown, frozen))
    assert np.abs(expected - plain).max() > 1e-2
    np.testing.assert_allclose(run(merge(join(grown, frozen))), expected, rtol=0, atol=1e-4)


def test_rows_of_training_fit_the_window():
    config = TrainConfig(data=DataConfig(row_length=WINDOW))
    assert check_architecture(FAMILIES["mistral"], config, BASE.vocab_size) == FAMILIES["mistral"]
    config = TrainConfig(data=DataConfig(row_length=WINDOW + 1))
    with pytest.raises(
        InputError, match=r"row_length 161 exceeds the model's sliding_window 160 .*lower data.row_length"
    ):
        check_architecture(FAMILIES["mistral"], config, BASE.vocab_size)
