"""The architecture that a GGUF file holds: its fields, under the names of llama.cpp's architectures."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from uner_jax.gguf_file import GGUFTensor
from uner_jax.model.config import Family, LlamaConfig, RopeScaling
from uner_jax.model.rotary import frequencies
from uner_jax.records import InputError

# llama.cpp knows no other, and has no field for it: the last of every four layers.
NO_ROPE_INTERVAL = 4
LONGEST = 2**31  # tokens


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp: the family that it is, and whether its rotary channels are interleaved pairs."""

    family: Family
    interleaved: bool


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", interleaved=False),
    "qwen3": Architecture("qwen3", interleaved=False),
    "smollm3": Architecture("smollm3", interleaved=True),
}


def architecture_name(fields: Mapping[str, Any]) -> str:
    """The architecture that the fields name; InputError if it is none of the table."""
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"architecture {name!r} is not supported; expected one of {', '.join(ARCHITECTURES)}")
    return name


def config_from_gguf(fields: Mapping[str, Any], tensors: Mapping[str, GGUFTensor]) -> LlamaConfig:
    """The config, from the fields and from the shapes of the tensors, which stand under Hugging Face's names.

    Raises InputError that names a field which is missing, wrong or not supported.
    """
    own = _Fields(fields, tensors)
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise InputError("lacks the tensor token_embd.weight")
    if own.number("expert_count", 0):
        raise InputError("a mixture of experts is not supported")
    if own.value("rope.scaling.type", "none") != "none":
        raise InputError("rotary scaling of a GGUF file is not supported; convert from the HF directory")
    heads, width = own.size("attention.head_count"), own.size("embedding_length")
    head_dim = own.size("attention.key_length", max(1, width // heads))
    if own.number("rope.dimension_count", head_dim) != head_dim:
        raise InputError("rotary positions on a part of each head are not supported")
    if own.number("attention.value_length", head_dim) != head_dim:
        raise InputError("values that are not as wide as keys are not supported")
    # a block has nine tensors or more, so there are fewer blocks than tensors.
    layers = own.size("block_count", largest=len(tensors))
    family = ARCHITECTURES[own.architecture].family
    window = (
        own.size("attention.sliding_window", largest=LONGEST) if own.number("attention.sliding_window", 0) else None
    )
    return LlamaConfig(
        vocab_size=embedding.shape[0],
        hidden_size=width,
        intermediate_size=own.size("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=own.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=own.size("context_length", largest=LONGEST),
        rms_norm_eps=own.positive("attention.layer_norm_rms_epsilon", 1e-5),
        rope_theta=own.positive("rope.freq_base", 10_000.0),
        attention_bias="model.layers.0.self_attn.o_proj.bias" in tensors,
        mlp_bias="model.layers.0.mlp.gate_proj.bias" in tensors,
        tie_word_embeddings="lm_head.weight" not in tensors,
        # the files of Mistral say llama.
        family="mistral" if window and family == "llama" else family,
        sliding_window=window,
        layers_without_rope=tuple(range(NO_ROPE_INTERVAL - 1, layers, NO_ROPE_INTERVAL)) if family == "smollm3" else (),
    )


def is_interleaved(config: LlamaConfig) -> bool:
    """Whether llama.cpp has the rotary channels of such a model as interleaved pairs."""
    return ARCHITECTURES[_name_of(config)].interleaved


def _name_of(config: LlamaConfig) -> str:
    return "llama" if config.family == "mistral" else config.family


def config_to_gguf(config: LlamaConfig) -> dict[str, Any]:
    """The fields that `config_from_gguf` reads; of rotary scaling they say nothing (see `llama3_factors`)."""
    name = _name_of(config)
    own: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    if config.sliding_window:
        own["attention.sliding_window"] = config.sliding_window
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in own.items()}


def llama3_factors(config: LlamaConfig) -> np.ndarray | None:
    """What the scaling of Llama 3.1 and 3.2 divides each frequency by, float32 of (Dh / 2,); None without scaling.

    Raises InputError for a scaling that `llama3_scaling` would not find again.
    """
    if config.rope_scaling is None:
        return None
    plain = dataclasses.replace(config, rope_scaling=None)
    factors_F = np.asarray(frequencies(plain) / frequencies(config), np.float32)
    try:
        if llama3_scaling(plain, factors_F) == config.rope_scaling:
            return factors_F
    except InputError:
        pass
    raise InputError("rotary scaling other than that of Llama 3.1 and 3.2 is not written as GGUF; use convert to-hf")


def llama3_scaling(config: LlamaConfig, factors_F: np.ndarray) -> RopeScaling:
    """The scaling of Llama 3.1 and 3.2 that divides each frequency by these factors, float32 of (Dh / 2,).

    A file has the factors alone. Raises InputError if they are not of that scaling.
    """
    factor = float(factors_F.max())
    if factor > 0 and factors_F.shape == (config.head_dim // 2,):
        scaling = RopeScaling("llama3", factor)
        expected_F = frequencies(config) / frequencies(dataclasses.replace(config, rope_scaling=scaling))
        if np.allclose(factors_F, expected_F, rtol=1e-5):
            return scaling
    raise InputError("rope_freqs are not those of Llama 3.1 or 3.2; convert from the HF directory")


class _Fields:
    """The fields of the architecture, checked; their names are given without it."""

    def __init__(self, fields: Mapping[str, Any], tensors: Mapping[str, GGUFTensor]):
        self.architecture = architecture_name(fields)
        self._fields = fields
        # a size beyond all shapes would be believed until arrays of it are made.
        self._largest = max((max(tensor.shape) for tensor in tensors.values()), default=0)

    def value(self, key: str, default: Any = None) -> Any:
        return self._fields.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"the field {self.architecture}.{key} must be a number, found {value!r}")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise InputError(f"the field {self.architecture}.{key} must be a number above 0, found {value!r}")
        return float(value)

    def size(self, key: str, default: int | None = None, largest: int | None = None) -> int:
        value = self.value(key, default)
        name = f"{self.architecture}.{key}"
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"the field {name} must be a positive number, found {value!r}")
        largest = largest or max(self._largest, default or 0)
        if value > largest:
            raise InputError(f"the field {name} is {value}, more than the {largest} that the tensors have room for")
        return value
