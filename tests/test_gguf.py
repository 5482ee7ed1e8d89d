"""GGUF files: every type is dequantised as its own package does, and what is damaged is refused at no cost."""

import dataclasses
import itertools
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import gguf_fields, quantised, write_gguf

from uner_jax.gguf_file import read_gguf_head
from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.parameters import abstract_model, flatten
from uner_jax.model.rotary import frequencies
from uner_jax.records import InputError
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights import load_model
from uner_jax.weights.names import TENSOR_NAMES

# 256 inputs fill a block of the largest kinds.
CONFIG = LlamaConfig(
    vocab_size=24,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=64,
    rms_norm_eps=2**-16,  # exact in float32 too
)
SMALL = dataclasses.replace(CONFIG, hidden_size=32, intermediate_size=32, head_dim=8, num_hidden_layers=5)
KINDS = (
    Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1,
    Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
)  # fmt: skip
Weights = dict[str, np.ndarray]


def random_weights(config: LlamaConfig) -> Weights:
    """Tensors under Hugging Face's names and in its layout, drawn by name."""
    weights = {}
    for name, leaf in flatten(abstract_model(config)).items():
        theirs = TENSOR_NAMES[name]
        shape = theirs.their_shape(leaf.shape[1:] if theirs.per_layer else leaf.shape)
        for layer in range(config.num_hidden_layers) if theirs.per_layer else range(1):
            full = theirs.name.format(layer=layer)
            weights[full] = np.random.default_rng(zlib.crc32(full.encode())).normal(0, 0.3, shape).astype(np.float32)
    return weights


def packed(weights: Weights, kinds: tuple[Kind, ...]) -> dict[str, tuple[Kind, np.ndarray]]:
    """The matrices in these kinds, one after another; vectors stay float32, as llama.cpp has them."""
    rng, turn = np.random.default_rng(0), itertools.cycle(kinds)
    chosen = {name: next(turn) if tensor.ndim > 1 else Kind.F32 for name, tensor in weights.items()}
    return {name: (kind, quantised(weights[name], kind, rng)) for name, kind in chosen.items()}


def loaded_weights(path: Path) -> Weights:
    """The parameters of the model in Hugging Face's layout."""
    weights, model = {}, load_model(path, dtype=None)
    for name, leaf in flatten(model).items():
        theirs = TENSOR_NAMES[name]
        layers = range(model.config.num_hidden_layers) if theirs.per_layer else [None]
        for layer in layers:
            parameter = np.asarray(leaf if layer is None else leaf[layer])
            weights[theirs.name.format(layer=layer)] = theirs.to_theirs(parameter)
    return weights


def assert_same(found: Weights, expected: Weights):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids=[*(kind.name for kind in KINDS), "mixed"])
def test_every_kind_is_loaded_as_its_package_dequantises_it(kinds, tmp_path):
    config = dataclasses.replace(CONFIG, num_hidden_layers=2) if len(kinds) > 1 else CONFIG
    weights = packed(random_weights(config), kinds)
    assert {kind for kind, _ in weights.values()} == {Kind.F32, *kinds}
    write_gguf(tmp_path / "model.gguf", weights, gguf_fields(config), config.head_dim)
    expected = {name: gguf.quants.dequantize(tensor, kind) for name, (kind, tensor) in weights.items()}
    assert_same(loaded_weights(tmp_path / "model.gguf"), expected)


FAMILIES = {
    "llama": SMALL,
    "llama with biases, tied": dataclasses.replace(SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": dataclasses.replace(SMALL, family="mistral", sliding_window=48),
    "qwen2": dataclasses.replace(SMALL, family="qwen2", rope_theta=1e6),
    "qwen3": dataclasses.replace(SMALL, family="qwen3", head_dim=16),
    "smollm3": dataclasses.replace(SMALL, family="smollm3", tie_word_embeddings=True, layers_without_rope=(3,)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_is_the_model_that_was_written(name, tmp_path):
    config = FAMILIES[name]
    weights = random_weights(config)
    write_gguf(tmp_path / "model.gguf", packed(weights, (Kind.F32,)), gguf_fields(config), config.head_dim)
    assert load_model(tmp_path / "model.gguf").config == config
    assert_same(loaded_weights(tmp_path / "model.gguf"), weights)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_known_by_its_factors(factor, tmp_path):
    config = dataclasses.replace(CONFIG, rope_theta=500_000.0)
    scaled = dataclasses.replace(config, rope_scaling=RopeScaling("llama3", factor))
    factors = (frequencies(config) / frequencies(scaled)).astype(np.float32)
    assert len(set(factors.tolist())) > 3
    for wrong in (False, True):
        weights = packed(random_weights(config), (Kind.F32,))
        weights["rope_freqs.weight"] = Kind.F32, factors + np.float32(0.01 * wrong)
        write_gguf(tmp_path / "model.gguf", weights, gguf_fields(config), config.head_dim)
        if wrong:
            with pytest.raises(InputError, match=r"model.gguf: rope_freqs are not those of Llama 3.1 or 3.2"):
                load_model(tmp_path / "model.gguf")
        else:
            assert load_model(tmp_path / "model.gguf").config == scaled


# ---- damaged and hostile files

TINY = dataclasses.replace(SMALL, hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=6)
VOCABULARY = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a", "a", "▁"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A small valid file with a vocabulary."""
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    write_gguf(path, packed(random_weights(TINY), (Kind.F16, Kind.Q8_0)), gguf_fields(TINY) | VOCABULARY, TINY.head_dim)
    assert load_model(path).config == TINY
    assert load_tokenizer(path).encode("a") == [3]
    return path.read_bytes()


def after(data: bytes, name: str, skip: int) -> int:
    """The place so many bytes behind the text of that name; without a name, behind the start."""
    text = struct.pack("<Q", len(name)) + name.encode() if name else b""
    return data.index(text) + len(text) + skip


HUGE = 2**60
GATE = "blk.0.ffn_gate.weight"
# behind which name, so many bytes on, which number is written how, and the words of the error. Behind a field's name
# stand 4 bytes of its type and its value, or the type of a list's items and their number; behind a tensor's name
# 4 bytes of its number of dimensions, 8 each of two dimensions, the inner one first, 4 of its type and 8 of its place.
HOSTILE = {
    "more tensors than bytes": ("", 8, "<Q", HUGE, f"claims {HUGE} items of tensors"),
    "more fields than bytes": ("", 16, "<Q", HUGE, f"claims {HUGE} items of fields"),
    "another version": ("", 4, "<I", 9, "it is of version 9"),
    "the other byte order": ("", 4, ">I", 3, "little-endian"),
    "a name behind the end": ("", 24, "<Q", HUGE, "a field's name ends at byte"),
    "a field of no type": ("llama.block_count", 0, "<I", 77, "is of type 77"),
    "a text behind the end": ("tokenizer.ggml.model", 4, "<Q", HUGE, "tokenizer.ggml.model ends at byte"),
    "more texts than bytes": ("tokenizer.ggml.tokens", 8, "<Q", HUGE, f"claims {HUGE} items of tokenizer.ggml.tokens"),
    "more numbers than bytes": ("tokenizer.ggml.scores", 8, "<Q", HUGE, "tokenizer.ggml.scores ends at byte"),
    "lists in a list": ("tokenizer.ggml.scores", 4, "<I", 9, "is of type 9"),
    "too many dimensions": (GATE, 0, "<I", 2**31, "has 2147483648 dimensions; expected 1 to 4"),
    "no dimensions": (GATE, 0, "<I", 0, "has 0 dimensions"),
    "an empty tensor": (GATE, 4, "<Q", 0, "is empty"),
    "a huge tensor": (GATE, 12, "<Q", HUGE, "ends at byte"),
    "part of a block": (GATE, 4, "<Q", 33, "no multiple of the 32 of Q8_0"),
    "another shape": (GATE, 12, "<Q", 31, "mlp.gate_proj.weight has shape (31, 32); the config says (32, 32)"),
    "a tensor of no type": (GATE, 20, "<I", 99, "is quantised as type 99, which is not supported"),
    "a tensor of integers": (GATE, 20, "<I", 24, "is quantised as I8, which is not supported"),
    "a tensor as no file has it": (GATE, 20, "<I", 9, "is quantised as Q8_1, which is not supported"),
    "a tensor behind the end": (GATE, 24, "<Q", HUGE, "ends at byte"),
    "layers without tensors": ("llama.block_count", 4, "<I", 2**31, "block_count is 2147483648, more than the 12"),
    "a width of no tensor": ("llama.embedding_length", 4, "<I", 2**31, "embedding_length is 2147483648, more than"),
    "no base": ("llama.rope.freq_base", 4, "<f", np.nan, "freq_base must be a number, found nan"),
    "no epsilon": ("llama.attention.layer_norm_rms_epsilon", 4, "<f", -1.0, "must be a number above 0, found -1.0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_claims_is_not_believed(name, whole, tmp_path):
    behind, skip, form, value, words = HOSTILE[name]
    changed = bytearray(whole)
    struct.pack_into(form, changed, after(whole, behind, skip), value)
    path = tmp_path / "model.gguf"
    path.write_bytes(changed)
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        load_model(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert peak < 2**22


@pytest.mark.parametrize("field", ["scores", "merges", "model", "bos_token_id"])
def test_a_vocabulary_of_other_types_is_refused(field, tmp_path):
    wrong = {"scores": "-1", "merges": "a b", "model": 3, "bos_token_id": "1"}[field]
    fields = gguf_fields(TINY) | VOCABULARY | {f"tokenizer.ggml.{field}": wrong}
    write_gguf(tmp_path / "model.gguf", {}, fields, TINY.head_dim)
    with pytest.raises(InputError, match=f"model.gguf: tokenizer.ggml.{field} is of another type .*{wrong!r}"):
        load_tokenizer(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "change", [{"expert_count": 8}, {"attention.value_length": 4}, {"attention.head_count": [4, 4]}]
)
def test_an_architecture_that_is_not_this_one_is_refused_by_the_name_of_a_field(change, tmp_path):
    fields = gguf_fields(TINY) | {f"llama.{key}": value for key, value in change.items()}
    write_gguf(tmp_path / "model.gguf", packed(random_weights(TINY), (Kind.F32,)), fields, TINY.head_dim)
    with pytest.raises(InputError, match=r"model.gguf: .*(experts|values|head_count)"):
        load_model(tmp_path / "model.gguf")


NASTY = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(data: bytes, head: int, rng: np.random.Generator) -> bytes:
    """The file with a few of its bytes changed, taken away or put twice; most of them in its head."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(head if rng.random() < 0.9 else len(changed)))
        kind = rng.integers(5)
        if kind == 0:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[place] = int(rng.integers(256))
        elif kind == 2:
            changed[place : place + 8] = struct.pack("<Q", NASTY[rng.integers(len(NASTY))])
        elif kind == 3:
            del changed[place : place + int(rng.integers(1, 40))]
        else:
            changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
    return bytes(changed[: int(rng.integers(len(changed)))] if rng.random() < 0.05 else changed)


def test_a_mutated_file_is_a_model_or_an_error_in_little_memory(whole, tmp_path):
    path, rng = tmp_path / "model.gguf", np.random.default_rng(0)
    path.write_bytes(whole)
    head = min(tensor.start for tensor in read_gguf_head(path).tensors.values())
    outcomes: dict[Any, int] = {}
    tracemalloc.start()
    for _ in range(250):
        path.write_bytes(mutated(whole, head, rng))
        for load in (load_model, load_tokenizer):
            try:
                outcome = type(load(path)).__name__
            except InputError as error:
                assert str(error).startswith(f"{path}: ")
                outcome = "refused"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25
    assert outcomes.keys() == {"Llama", "Tokenizer", "refused"}
    assert min(outcomes.values()) > 20, outcomes
