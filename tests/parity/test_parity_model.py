"""Our LLaMA computes what transformers' LLaMA on torch computes, from its files and into its files."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from uner_jax.extraction.engine import Engine, Request
from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, unflatten
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights import load_model, load_model_tokenizer
from uner_jax.weights.hf import write_hf
from uner_jax.weights.hf_config import FAMILIES, config_to_hf

BASE = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=300,
)
# between them every field of LlamaConfig and of RopeScaling takes at least two values.
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"num_key_value_heads": 2, "num_hidden_layers": 3},
    "one key-value head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True, "vocab_size": 640},
    "attention biases": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp biases": {"mlp_bias": True, "intermediate_size": 64, "num_hidden_layers": 1},
    "wide heads": {"head_dim": 20, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48},
    "slow rotation, large epsilon": {"rope_theta": 500_000.0, "rms_norm_eps": 0.05},
    "fast rotation": {"rope_theta": 20.0, "max_position_embeddings": 280},
    "linear scaling": {"rope_scaling": RopeScaling("linear", 4.0)},
    "llama3 scaling": {"rope_scaling": RopeScaling("llama3", 8.0, original_max_position_embeddings=64)},
    "llama3 scaling, all options": {
        "rope_scaling": RopeScaling(
            "llama3", 3.0, low_freq_factor=2.0, high_freq_factor=6.0, original_max_position_embeddings=100
        ),
        "head_dim": 16,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "rope_theta": 1000.0,
        "rms_norm_eps": 1e-3,
    },
    "mistral": {"family": "mistral", "num_key_value_heads": 2, "sliding_window": 280},
    "mistral of wide heads, without a window": {"family": "mistral", "head_dim": 12, "num_key_value_heads": 1},
    "qwen2": {"family": "qwen2", "num_key_value_heads": 2, "rope_theta": 1e6},
    "qwen2, tied, with a window": {"family": "qwen2", "tie_word_embeddings": True, "sliding_window": 280},
    "qwen3": {"family": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6},
    "qwen3, tied, with biases": {"family": "qwen3", "tie_word_embeddings": True, "attention_bias": True},
    "smollm3": {
        "family": "smollm3",
        "num_hidden_layers": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "layers_without_rope": (3,),
    },
    "smollm3, biases, first and last layer without rotary positions": {
        "family": "smollm3",
        "num_hidden_layers": 3,
        "attention_bias": True,
        "mlp_bias": True,
        "layers_without_rope": (0, 2),
    },
}
CONFIGS = {name: dataclasses.replace(BASE, **change) for name, change in CHANGES.items()}
LENGTH = 280


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on name and shape; norms are not all 1 and biases not 0."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    return (1 + 0.3 * values if "norm" in name else 0.2 * values).astype(np.float32)


def random_model(config: LlamaConfig) -> Llama:
    model = abstract_model(config)
    return unflatten(model, {name: jnp.asarray(draw(name, leaf.shape)) for name, leaf in flatten(model).items()})


def random_torch_model(config: LlamaConfig) -> torch.nn.Module:
    # the ids that smollm3 would have otherwise are beyond this vocabulary.
    fields = AutoConfig.for_model(**config_to_hf(config), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(fields, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(draw(name, tuple(parameter.shape))))
    return model


def random_tokens(vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(vocab, size=(2, LENGTH), dtype=np.int32)


def our_logits(model: Llama, tokens_BT: np.ndarray) -> np.ndarray:
    # every program runs once: compiling it is what takes the time.
    run = jax.jit(lambda model, tokens_BT: model(tokens_BT), compiler_options={"xla_backend_optimization_level": 0})
    return np.asarray(run(model, tokens_BT))


def torch_logits(model: torch.nn.Module, tokens_BT: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(tokens_BT.astype(np.int64))).logits.numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4):
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def load_in_torch(directory: Path, architecture: str = "LlamaForCausalLM") -> torch.nn.Module:
    """The model as anybody loads it; every tensor of the file has its place, and the other way round."""
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert type(model).__name__ == architecture
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("kind", [LlamaConfig, RopeScaling])
def test_every_field_takes_two_values_in_these_configs(kind):
    found = [config if kind is LlamaConfig else config.rope_scaling for config in CONFIGS.values()]
    for field in dataclasses.fields(kind):
        values = {getattr(value, field.name) for value in found if value is not None}
        assert len(values) > 1, field.name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_saved_by_transformers_computes_the_same_here(name, tmp_path):
    config = CONFIGS[name]
    theirs = random_torch_model(config)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config == config
    tokens_BT = random_tokens(config.vocab_size)
    expected_BTV = torch_logits(theirs, tokens_BT)
    assert expected_BTV.std() > 0.1
    assert_close(our_logits(ours, tokens_BT), expected_BTV)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_written_here_computes_the_same_in_transformers(name, shared_data, tmp_path):
    config = CONFIGS[name]
    ours = random_model(config)
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    write_hf(ours, tokenizer, tmp_path / "model")
    theirs = load_in_torch(tmp_path / "model", FAMILIES[config.family].architecture)
    tokens_BT = random_tokens(config.vocab_size)
    assert_close(our_logits(ours, tokens_BT), torch_logits(theirs, tokens_BT))


WINDOW = 12


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_a_window_hides_nothing_in_a_row_that_it_spans_and_something_in_a_longer_one(family, tmp_path):
    config = dataclasses.replace(BASE, family=family, sliding_window=WINDOW)
    theirs = random_torch_model(config)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.longest_row == WINDOW
    tokens_BT = random_tokens(config.vocab_size)[:, : WINDOW + 1]
    assert_close(our_logits(ours, tokens_BT[:, :WINDOW]), torch_logits(theirs, tokens_BT[:, :WINDOW]))
    with pytest.raises(ValueError, match=f"13 tokens exceed sliding_window {WINDOW}"):
        ours(tokens_BT)
    ours.config = dataclasses.replace(config, sliding_window=None)
    differences_T = np.abs(our_logits(ours, tokens_BT) - torch_logits(theirs, tokens_BT)).max(axis=(0, 2))
    assert differences_T[:WINDOW].max() < 1e-4 < 1e-2 < differences_T[WINDOW]


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "smollm3"])
def test_greedy_answers_of_a_family_are_those_of_transformers(name, tmp_path):
    config, new_tokens = CONFIGS[name], 12
    theirs = random_torch_model(config)
    theirs.save_pretrained(tmp_path)
    ids = random_tokens(config.vocab_size)[0].tolist()
    # two questions behind a context that is read once, and one behind another.
    prompts = [(ids[:20], ids[20:25]), (ids[:20], ids[25:33]), (ids[40:70], ids[70:74])]
    # no token ends an answer, and the draft is one that no model would write.
    engine = Engine(load_model(tmp_path), config.vocab_size, batch_size=2, max_new_tokens=new_tokens, draft=ids[80:83])
    found = dict(engine.generate([Request(tuple(context), tuple(question)) for context, question in prompts]))
    for place, (context, question) in enumerate(prompts):
        prompt = torch.tensor([context + question])
        with torch.inference_mode():
            written = theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert list(found[place].tokens) == written[0, prompt.shape[1] :].tolist()


# ---- a real model


@pytest.fixture(scope="module")
def smollm2(smollm2_path) -> Llama:
    return load_model(smollm2_path)


@pytest.fixture(scope="module")
def export(smollm2, smollm2_path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "SmolLM2"
    write_hf(smollm2, load_model_tokenizer(smollm2_path), directory)
    return directory


@pytest.fixture(scope="module")
def passages(shared_data) -> list[str]:
    lines = (shared_data / "teacher" / "pile_ner_sample.jsonl").read_text().splitlines()[:5]
    return [json.loads(line)["conversations"][0]["value"] for line in lines]


def test_a_real_model_computes_the_same_in_transformers(smollm2, export, passages):
    ids = load_model_tokenizer(export).encode(passages[0])
    assert len(ids) > 100
    tokens_BT = np.asarray([ids], np.int32)
    assert_close(our_logits(smollm2, tokens_BT), torch_logits(load_in_torch(export), tokens_BT), 2e-3)


def test_the_export_of_a_real_model_has_its_generation_config_and_tokenizer(export, smollm2_path, passages):
    ours = load_model_tokenizer(export)
    generation = GenerationConfig.from_pretrained(export)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (
        ours.bos_id,
        ours.eos_id,
        ours.pad_id,
    )
    assert not generation.do_sample
    theirs = AutoTokenizer.from_pretrained(export, local_files_only=True)
    for text in [*passages, "", " two  spaces ", "line\nbreaks\n\n", "naïve café 🤖 東京", "1234567"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
