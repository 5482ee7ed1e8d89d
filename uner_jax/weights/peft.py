"""LoRA adapters in the form of PEFT: `adapter_config.json` and `adapter_model.safetensors`, in and out."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from uner_jax.model.adapters import TARGETS, AdapterConfig, Target
from uner_jax.records import InputError, write_json
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.adapter import Adapter
from uner_jax.weights.card import Card, write_card
from uner_jax.weights.chat import write_prompt
from uner_jax.weights.directory import whole_directory
from uner_jax.weights.json_object import read_object
from uner_jax.weights.names import TENSOR_NAMES
from uner_jax.weights.origin import UNKNOWN, Origin
from uner_jax.weights.tensor_file import TensorFile

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"(base_model\.model\.model\.layers\.)(\d+)(\..+)\.lora_([AB])\.weight")

# Fields that a config may have, with these values only: others change what the adapters compute.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    # other initialisations change the base too.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
READ = {"base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora"}
# Fields that say nothing about the numbers, or nothing that the tensors' names do not say.
NEUTRAL = {
    "auto_mapping", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
}  # fmt: skip


def _peft_layers() -> dict[str, str]:
    """The names of our stacked projections, by those of PEFT's modules with `{layer}` in them."""
    kernels = {ours: theirs.name for ours, theirs in TENSOR_NAMES.items() if ours.endswith(".kernel")}
    return {
        PREFIX + theirs.removesuffix(".weight"): ours.removesuffix(".kernel") + ".adapter"
        for ours, theirs in kernels.items()
    }


def _target(module: str) -> Target:
    return next(target for target in TARGETS if module.endswith(f".{target}"))


def is_peft(directory: Path) -> bool:
    """Whether the directory holds an adapter in PEFT's form."""
    return (directory / CONFIG_NAME).is_file()


def write_peft(
    adapter: Adapter,
    tokenizer: Tokenizer,
    directory: Path,
    dtype: str | None = None,
    origin: Origin = UNKNOWN,
    card: Card = Card(),  # noqa: B008 (it is frozen)
) -> None:
    """Write a directory that PEFT loads, with tokenizer, chat template and card; `dtype` converts the matrices.

    The directory appears under its name when it is whole. Raises InputError if it exists and is not empty.
    """
    with whole_directory(directory) as partial:
        save_file(_peft_tensors(adapter, dtype), partial / WEIGHTS_NAME, metadata={"format": "pt"})
        has_template = write_prompt(partial, tokenizer, origin.noun)
        write_card(partial, card, origin, has_template, adapter.base)
        write_json(partial / CONFIG_NAME, _peft_config(adapter))


def _peft_tensors(adapter: Adapter, dtype: str | None) -> dict[str, np.ndarray]:
    tensors = {}
    for module, ours in _peft_layers().items():
        if f"{ours}.a" not in adapter.leaves:
            continue
        a_L, b_L = (adapter.leaves[f"{ours}.{side}"].astype(dtype or np.float32) for side in "ab")
        for layer, (a, b) in enumerate(zip(a_L, b_L, strict=True)):
            name = module.format(layer=layer)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    return tensors


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.config.rank,
        "lora_alpha": adapter.config.alpha,
        "lora_dropout": adapter.config.dropout,
        "target_modules": list(adapter.config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read_peft(directory: Path) -> Adapter:
    """An adapter in PEFT's form.

    Raises InputError for kinds of adapters that are not plain LoRA on the linear layers of the blocks, for tensors
    that are missing, unknown or of a wrong shape, and if the base is no path on this machine.
    """
    where = directory / CONFIG_NAME
    fields = read_object(where)
    _check_fields(fields, str(where))
    rank = fields["r"]
    alpha = fields["lora_alpha"] * (rank**0.5 if fields.get("use_rslora") else 1.0)
    matrices = _read_matrices(directory / WEIGHTS_NAME)
    names = _peft_layers()
    leaves = {}
    for (module, side), layers in matrices.items():
        if module not in names:
            raise InputError(f"{directory}: {module.format(layer=0)} is no linear layer of a block of a LLaMA")
        leaves[f"{names[module]}.{side.lower()}"] = _stacked(directory, module, side, layers, rank)
    targets = {_target(module) for module, _ in matrices}
    dropout, ordered = fields.get("lora_dropout") or 0.0, tuple(target for target in TARGETS if target in targets)
    try:
        config = AdapterConfig(rank=rank, alpha=alpha, dropout=dropout, targets=ordered)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return Adapter(str(directory), config, peft_base(directory), leaves)


def peft_base(directory: Path) -> str:
    """The path of the model that the adapter is for, as it stands there or seen from the directory."""
    named = read_object(directory / CONFIG_NAME).get("base_model_name_or_path")
    for path in (Path(named or ""), directory / (named or "")):
        if named and path.exists():
            return str(path)
    raise InputError(
        f"{directory / CONFIG_NAME}: base_model_name_or_path {named!r} is not on this machine; "
        "get that model and put the path of its directory there"
    )


def _check_fields(fields: dict[str, Any], where: str) -> None:
    for name, allowed in REQUIRED.items():
        if name in fields and not any(fields[name] is value or fields[name] == value for value in allowed):
            raise InputError(f"{where}: {name} = {fields[name]!r} is not supported; expected {allowed[0]!r}")
    others = [name for name, value in fields.items() if value and name not in {*REQUIRED, *READ, *NEUTRAL}]
    if others:
        raise InputError(
            f"{where}: not supported: {', '.join(f'{name} = {fields[name]!r}' for name in sorted(others))}"
        )
    rank, alpha, dropout = fields.get("r"), fields.get("lora_alpha"), fields.get("lora_dropout") or 0.0
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"{where}: r must be a whole number above 0, found {rank!r}")
    for name, value in (("lora_alpha", alpha), ("lora_dropout", dropout)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InputError(f"{where}: {name} must be a number, found {value!r}")


def _read_matrices(path: Path) -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """By module with `{layer}` in its name and side ("A", "B"): the matrices of the layers, as they stand there."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; an adapter needs its matrices as safetensors")
    file = TensorFile(path)
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for name in file.entries:
        match = KEY.fullmatch(name)
        if match is None:
            raise InputError(f"{path}: tensor {name!r} is not of a LoRA adapter of a LLaMA's blocks")
        start, layer, module, side = match.groups()
        found.setdefault((f"{start}{{layer}}{module}", side), {})[int(layer)] = file.read(name)
    if not found:
        raise InputError(f"{path}: holds no tensors")
    return found


def _stacked(directory: Path, module: str, side: str, layers: dict[int, np.ndarray], rank: int) -> np.ndarray:
    """The matrices of all layers, as `Adapter` has them."""
    missing = sorted(set(range(max(layers) + 1)) - set(layers))
    if missing:
        raise InputError(
            f"{directory}: {module.format(layer=missing[0])} has no lora_{side}, though layers behind it do"
        )
    shapes = {matrix.shape for matrix in layers.values()}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 2 or shape[0 if side == "A" else 1] != rank:
        raise InputError(f"{directory}: lora_{side} of {module} should have one shape and rank {rank}")
    return np.stack([layers[layer].T.astype(np.float32) for layer in sorted(layers)])
