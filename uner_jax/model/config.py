"""The architecture of a LLaMA, read from and written to the fields of a Hugging Face config."""

import dataclasses
from typing import Any, Literal

from uner_jax.records import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pre-training.

    `linear` divides all frequencies by `factor`; `llama3` divides the low ones, keeps the high ones
    and blends between (LLaMA 3.1 model card). The last three fields serve `llama3` only.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches of a LLaMA, under the names of Hugging Face's LlamaConfig.

    `max_position_embeddings` is the longest row that the model accepts, in tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} is odd; rotary embeddings need pairs")


# Fields that say nothing about the numbers that the model computes.
NEUTRAL = {
    "_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "initializer_range", "is_encoder_decoder", "is_llama_config", "label2id", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type",
    "return_dict", "torch_dtype", "torchscript", "transformers.js_config", "transformers_version",
    "use_bfloat16", "use_cache", "max_sequence_length", "unk_token_id",
}  # fmt: skip

# Fields that may stand there, but with one value only: the one that this model computes.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
}

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# The defaults are Hugging Face's own for fields that a config may leave out.
OPTIONAL = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")


def config_from_hf(fields: dict[str, Any], where: str) -> LlamaConfig:
    """Read the fields of a `config.json`, of transformers 4 (`rope_theta`) or 5 (`rope_parameters`).

    Raises InputError that names an architecture, a field or a value that this model does not compute.
    """
    if fields.get("model_type") != "llama":
        raise InputError(f'{where}: model_type {fields.get("model_type")!r} is not supported; expected "llama"')
    for name, allowed in REQUIRED.items():
        if name in fields and fields[name] not in allowed:
            raise InputError(f"{where}: {name} = {fields[name]!r} is not supported; expected {allowed[0]!r}")
    known = {*NEUTRAL, *REQUIRED, *SIZES, *OPTIONAL, *ROPE_FIELDS, "num_key_value_heads", "head_dim"}
    unknown = sorted(name for name in fields if name not in known and fields[name] is not None)
    if unknown:
        raise InputError(f"{where}: unknown field(s) {', '.join(unknown)}: they may change what the model computes")
    missing = [name for name in SIZES if not isinstance(fields.get(name), int)]
    if missing:
        raise InputError(f"{where}: field(s) missing or not a whole number: {', '.join(missing)}")
    theta, scaling = _read_rope(fields, where)
    heads = fields["num_attention_heads"]
    return LlamaConfig(
        **{name: fields[name] for name in SIZES},
        **{name: fields.get(name, default) for name, default in OPTIONAL.items()},
        num_key_value_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def _read_rope(fields: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", None) or fields.get("rope_theta") or 10_000.0)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise InputError(f'{where}: rotary scaling {kind!r} is not supported; expected "linear" or "llama3"')
    names = {field.name for field in dataclasses.fields(RopeScaling)} - {"kind"}
    unknown = sorted(set(rope) - names)
    needed = {"factor"} if kind == "linear" else names
    if unknown or needed - set(rope):
        raise InputError(f"{where}: rotary scaling {kind!r} needs {sorted(needed)}, found {sorted(rope)}")
    return theta, RopeScaling(kind="linear" if kind == "linear" else "llama3", **rope)


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The config under the names of transformers 5, for `transformers.LlamaConfig(**fields)`."""
    fields = dataclasses.asdict(config)
    theta, scaling = fields.pop("rope_theta"), fields.pop("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        kind = scaling.pop("kind")
        rope |= {"rope_type": kind, "factor": scaling["factor"]} if kind == "linear" else {"rope_type": kind} | scaling
    return fields | {"rope_parameters": rope, "hidden_act": "silu"}
