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
    missing = [name for name in SIZES if not _is_like(fields.get(name), 1)]
    if missing:
        raise InputError(f"{where}: field(s) missing or not a whole number above 0: {', '.join(missing)}")
    sizes = {name: fields[name] for name in SIZES}
    heads = sizes["num_attention_heads"]
    optional = OPTIONAL | {"num_key_value_heads": heads, "head_dim": sizes["hidden_size"] // heads}
    for name, default in optional.items():
        if fields.get(name) is not None and not _is_like(fields[name], default):
            raise InputError(f"{where}: {name} = {fields[name]!r} is not supported; expected one like {default!r}")
    found = {name: default if fields.get(name) is None else fields[name] for name, default in optional.items()}
    theta, scaling = _read_rope(fields, where)
    try:
        return LlamaConfig(**sizes, **found, rope_theta=theta, rope_scaling=scaling)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _is_like(value: Any, example: bool | int | float) -> bool:
    """Whether it is a bool as the example is, or a number above 0, whole if the example is."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(example, bool) and isinstance(value, bool)
    return isinstance(value, (int, type(example))) and value > 0


def _read_rope(fields: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{where}: rotary scaling {rope!r} is not supported; expected an object")
    rope = dict(rope)
    theta = rope.pop("rope_theta", None) or fields.get("rope_theta") or 10_000.0
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    part = rope.pop("partial_rotary_factor", None)
    if part not in REQUIRED["partial_rotary_factor"]:
        raise InputError(f"{where}: partial_rotary_factor = {part!r} is not supported; expected 1")
    if kind not in ("default", "linear", "llama3"):
        raise InputError(f'{where}: rotary scaling {kind!r} is not supported; expected "linear" or "llama3"')
    names = {field.name for field in dataclasses.fields(RopeScaling)} - {"kind"}
    needed = {"default": set(), "linear": {"factor"}, "llama3": names}[kind]
    if kind != "default" and (set(rope) - names or needed - set(rope)):
        raise InputError(f"{where}: rotary scaling {kind!r} needs {sorted(needed)}, found {sorted(rope)}")
    numbers = {"rope_theta": theta} | {name: rope[name] for name in sorted(needed)}
    for name, value in numbers.items():
        if not _is_like(value, 1.0):
            raise InputError(f"{where}: {name} = {value!r} is not supported; expected a number above 0")
    if kind == "default":
        return float(theta), None
    values = {name: rope[name] for name in needed}
    return float(theta), RopeScaling(kind="linear" if kind == "linear" else "llama3", **values)


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The config under the names of transformers 5, for `transformers.LlamaConfig(**fields)`."""
    fields = dataclasses.asdict(config)
    theta, scaling = fields.pop("rope_theta"), fields.pop("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        kind = scaling.pop("kind")
        rope |= {"rope_type": kind, "factor": scaling["factor"]} if kind == "linear" else {"rope_type": kind} | scaling
    return fields | {"rope_parameters": rope, "hidden_act": "silu"}
