"""The fields of a Hugging Face `config.json`, in and out, of the families that are LLaMAs with declared differences."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from uner_jax.model.config import Family, LlamaConfig, RopeScaling
from uner_jax.records import InputError

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
    "use_mrope": (False, None),
    "quantization_config": (None,),
}

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
SWITCHES = ("attention_bias", "mlp_bias")
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")


@dataclasses.dataclass(frozen=True)
class HFFamily:
    """What a `model_type` of transformers has: fields that may be left out, with transformers' own defaults for them.

    `switches` are the biases that it can have, `window` the fields that say whether a window slides over which layers.
    `num_key_value_heads` and `head_dim` of None follow from the other sizes.
    """

    architecture: str
    switches: tuple[str, ...] = ()
    window: tuple[str, ...] = ()
    sliding_window: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    rope_theta: float = 10_000.0

    def defaults(self) -> dict[str, Any]:
        """Values of the fields that a config may leave out, and that need no reading of their own."""
        return {
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": self.tie_word_embeddings,
            **dict.fromkeys(self.switches, False),
        }


WINDOW = ("sliding_window",)
LAYERED_WINDOW = (*WINDOW, "use_sliding_window", "layer_types", "max_window_layers")
NO_ROPE_FIELDS = ("no_rope_layers", "no_rope_layer_interval")
FAMILIES: dict[Family, HFFamily] = {
    "llama": HFFamily("LlamaForCausalLM", switches=SWITCHES, max_position_embeddings=2048),
    "mistral": HFFamily(
        "MistralForCausalLM",
        window=WINDOW,
        sliding_window=4096,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    ),
    "qwen2": HFFamily("Qwen2ForCausalLM", window=LAYERED_WINDOW, sliding_window=4096, num_key_value_heads=32),
    "qwen3": HFFamily(
        "Qwen3ForCausalLM",
        switches=("attention_bias",),
        window=LAYERED_WINDOW,
        sliding_window=4096,
        num_key_value_heads=32,
        head_dim=128,
    ),
    "smollm3": HFFamily(
        "SmolLM3ForCausalLM",
        switches=SWITCHES,
        window=LAYERED_WINDOW,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        rope_theta=2_000_000.0,
    ),
}
# What transformers takes where a config is silent: the first layer under a window of qwen2 and qwen3, and the number of
# smollm3's layers of which the last does not rotate.
FIRST_WINDOWED = 28
NO_ROPE_INTERVAL = 4
# far beyond any model: lists of so many layers are made before a weight is seen.
MOST_LAYERS = 10_000
WINDOWED, WHOLE = "sliding_attention", "full_attention"


def config_from_hf(fields: Mapping[str, Any], where: str) -> LlamaConfig:
    """Read the fields of a `config.json`, of transformers 4 (`rope_theta`) or 5 (`rope_parameters`).

    Raises InputError that names an architecture, a field or a value that this model does not compute.
    """
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"{where}: model_type {family!r} is not supported; expected one of {', '.join(map(repr, FAMILIES))}"
        )
    about = FAMILIES[family]
    _check_fields(fields, family, where)
    sizes = {name: fields[name] for name in SIZES}
    found = {name: default if fields.get(name) is None else fields[name] for name, default in about.defaults().items()}
    theta, scaling = _read_rope(fields, about.rope_theta, where)
    without_rope = _layers_without_rope(fields, where) if family == "smollm3" else ()
    found |= _heads(fields, about, where) | {
        "family": family,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "sliding_window": _sliding_window(fields, family, without_rope, where) if about.window else None,
        "layers_without_rope": without_rope,
    }
    try:
        return LlamaConfig(**sizes, **found)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_fields(fields: Mapping[str, Any], family: Family, where: str) -> None:
    """InputError for a field that is missing, unknown, or of another kind or value than this model computes."""
    about = FAMILIES[family]
    required = REQUIRED | {name: (False, None) for name in SWITCHES if name not in about.switches}
    if not about.window:
        required["sliding_window"] = (None,)
    for name, allowed in required.items():
        if name in fields and fields[name] not in allowed:
            raise InputError(f"{where}: {name} = {fields[name]!r} is not supported; expected {allowed[0]!r}")
    own = (*about.window, *(NO_ROPE_FIELDS if family == "smollm3" else ()))
    known = {*NEUTRAL, *required, *SIZES, *about.defaults(), *ROPE_FIELDS, *own, "num_key_value_heads", "head_dim"}
    unknown = sorted(name for name in fields if name not in known and fields[name] is not None)
    if unknown:
        raise InputError(f"{where}: unknown field(s) {', '.join(unknown)}: they may change what the model computes")
    missing = [name for name in SIZES if not _is_like(fields.get(name), 1)]
    if missing:
        raise InputError(f"{where}: field(s) missing or not a whole number above 0: {', '.join(missing)}")
    if fields["num_hidden_layers"] > MOST_LAYERS:
        raise InputError(f"{where}: num_hidden_layers = {fields['num_hidden_layers']}; expected at most {MOST_LAYERS}")
    for name, default in about.defaults().items():
        _check_like(fields, name, default, where)


def _heads(fields: Mapping[str, Any], about: HFFamily, where: str) -> dict[str, int]:
    """The key-value heads and the width of a head; a null stands for what follows from the other sizes."""
    heads = fields["num_attention_heads"]
    derived = {"num_key_value_heads": heads, "head_dim": fields["hidden_size"] // heads}
    found = {}
    for name, value in derived.items():
        _check_like(fields, name, value, where)
        default = getattr(about, name) or value
        given = fields.get(name, default)
        found[name] = value if given is None else given
    return found


def _layers_without_rope(fields: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The layers of a smollm3 that do not rotate: those with 0 in `no_rope_layers`, or the last of every few."""
    layers = fields["num_hidden_layers"]
    interval = fields.get("no_rope_layer_interval") or NO_ROPE_INTERVAL
    _check_like(fields, "no_rope_layer_interval", 1, where)
    flags = fields.get("no_rope_layers")
    if flags is None:
        return tuple(range(interval - 1, layers, interval))
    if not isinstance(flags, list) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        raise InputError(
            f"{where}: no_rope_layers must have a 1 (rotary positions) or 0 (none) for each of the {layers} layers"
        )
    return tuple(layer for layer, rotates in enumerate(flags[:layers]) if not rotates)


def _sliding_window(fields: Mapping[str, Any], family: Family, without_rope: tuple[int, ...], where: str) -> int | None:
    """The window that slides over all layers, in tokens; None if over none. InputError if over some of them."""
    about = FAMILIES[family]
    for name, example in (("sliding_window", 1), ("use_sliding_window", True), ("max_window_layers", 0)):
        _check_like(fields, name, example, where)
    window = fields.get("sliding_window", about.sliding_window)
    if about.window == WINDOW:
        return window
    window = window if fields.get("use_sliding_window") else None
    layers, kinds = fields["num_hidden_layers"], fields.get("layer_types")
    if kinds is None:
        first = FIRST_WINDOWED if fields.get("max_window_layers") is None else fields["max_window_layers"]
        under = without_rope if family == "smollm3" else range(first, layers)
        kinds = [WINDOWED if window and layer in under else WHOLE for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (WINDOWED, WHOLE) for kind in kinds):
        raise InputError(f'{where}: layer_types must have "{WHOLE}" or "{WINDOWED}" for each of the {layers} layers')
    if WINDOWED not in kinds:
        return None
    if window is None or WHOLE in kinds:
        raise InputError(
            f"{where}: {WINDOWED} in {kinds.count(WINDOWED)} of {layers} layers with a window of {window} "
            "is not supported; expected one window over all layers, or none"
        )
    return window


def _is_like(value: Any, example: bool | int | float) -> bool:
    """Whether it is a bool like the example, or a finite number above 0, whole if that is; 0 as well if that is 0."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(example, bool) and isinstance(value, bool)
    return isinstance(value, (int, type(example))) and (0 < value < math.inf or value == example == 0)


def _check_like(fields: Mapping[str, Any], name: str, example: bool | int | float, where: str) -> None:
    value = fields.get(name)
    if value is not None and not _is_like(value, example):
        raise InputError(f"{where}: {name} = {value!r} is not supported; expected one like {example!r}")


def _read_rope(fields: Mapping[str, Any], default_theta: float, where: str) -> tuple[float, RopeScaling | None]:
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{where}: rotary scaling {rope!r} is not supported; expected an object")
    rope = dict(rope)
    theta = rope.pop("rope_theta", None) or fields.get("rope_theta") or default_theta
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
    """The config under the names of transformers 5, for `transformers.AutoConfig.for_model(**fields)`.

    Raises InputError if transformers' model of that family could not be this one.
    """
    about = FAMILIES[config.family]
    names = (*SIZES, *about.defaults(), "num_key_value_heads", "head_dim")
    fields = {name: getattr(config, name) for name in names}
    fields |= {"model_type": config.family, "architectures": [about.architecture]}
    fields |= {"rope_parameters": _write_rope(config), "hidden_act": "silu"}
    if about.window:
        fields["sliding_window"] = config.sliding_window
    if "layer_types" in about.window:
        kind = WHOLE if config.sliding_window is None else WINDOWED
        fields["use_sliding_window"] = config.sliding_window is not None
        fields["layer_types"] = [kind] * config.num_hidden_layers
    if config.family == "smollm3":
        rotates = [int(layer not in config.layers_without_rope) for layer in range(config.num_hidden_layers)]
        fields["no_rope_layers"] = rotates
    _check_kept(config, config_from_hf(fields, "config.json"))
    return fields


def _write_rope(config: LlamaConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is None:
        return rope
    scaling = dataclasses.asdict(config.rope_scaling)
    kind = scaling.pop("kind")
    return rope | {"rope_type": kind} | ({"factor": scaling["factor"]} if kind == "linear" else scaling)


def _check_kept(config: LlamaConfig, read: LlamaConfig) -> None:
    # a linear scaling has numbers that say nothing: of the scaling, what is written counts.
    read = dataclasses.replace(read, rope_scaling=config.rope_scaling)
    lost = [
        field.name for field in dataclasses.fields(config) if getattr(read, field.name) != getattr(config, field.name)
    ]
    if lost:
        raise InputError(f"a model of the family {config.family!r} has no {', '.join(lost)} in Hugging Face's form")
