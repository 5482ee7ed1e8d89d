"""GGUF files, out: what llama.cpp runs, written a tensor at a time."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

from uner_jax.command import Progress
from uner_jax.gguf_file import GGUFTensor
from uner_jax.model.config import LlamaConfig
from uner_jax.records import InputError, atomic_path
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.chat import chat_template
from uner_jax.weights.directory import check_room
from uner_jax.weights.gguf import BLOCK_NAMES, OUTER_NAMES, ROPE_FACTORS
from uner_jax.weights.gguf_config import config_from_gguf, config_to_gguf, is_interleaved, llama3_factors
from uner_jax.weights.gguf_vocabulary import add_vocabulary, write_head
from uner_jax.weights.origin import UNKNOWN, Origin
from uner_jax.weights.tensors import Place, Tensors, places

GGUFDtype = Literal["float32", "float16", "bfloat16", "q8_0"]
KINDS = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
GGUF_NAMES = {theirs: name for name, theirs in (BLOCK_NAMES | OUTER_NAMES).items()}
# in one row of a quantised tensor all blocks must be full.
FALLBACK = GGMLQuantizationType.F16


def write_gguf(source: Tensors, tokenizer: Tokenizer, path: Path, dtype: GGUFDtype, origin: Origin = UNKNOWN) -> int:
    """Write a GGUF file, and return the bytes of its weights; vectors (norms, biases) are in float32 in any case.

    The file appears under its name when it is whole. Raises InputError if it is there, if there is no room, and for a
    model or a tokenizer that the format as it is written here cannot hold.
    """
    if path.exists():
        raise InputError(f"{path}: exists; give another name or remove it")
    fields, factors = _fields(source.config, source.where)
    kinds = {place: _kind(place, KINDS[dtype][0]) for place in places(source.config)}
    total = sum(_bytes(place, kind) for place, kind in kinds.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(path, total)
    with (
        atomic_path(path) as temporary,
        closing(GGUFWriter(temporary, fields.pop("general.architecture"))) as writer,
        Progress("writing weights", total, "B") as shown,
    ):
        _add_fields(writer, fields, dtype, origin)
        add_vocabulary(writer, tokenizer, source.config.vocab_size)
        template = chat_template(tokenizer, origin.noun)
        if template is not None:
            writer.add_chat_template(template)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for place, kind in kinds.items():
            # the dtype only says that the shape is one of numbers, not of bytes.
            writer.add_tensor_info(_name(place), place.shape, np.dtype(np.float32), _bytes(place, kind), kind)
        write_head(writer)
        if factors is not None:
            writer.write_tensor_data(factors)
        for place, kind in kinds.items():
            writer.write_tensor_data(_quantised(source, place, kind))
            shown.advance(_bytes(place, kind))
        source.check_read()
    return total


def _fields(config: LlamaConfig, where: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """The fields of the architecture and the factors of its rotary scaling.

    InputError unless the config can be read from them again: the format has no place for the rest.
    """
    fields = config_to_gguf(config)
    shapes = {place.name: GGUFTensor(place.name, 0, place.shape, 0) for place in places(config)}
    try:
        factors, read = llama3_factors(config), config_from_gguf(fields, shapes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    family = config.family if config.sliding_window or config.family != "mistral" else "llama"
    wanted = dataclasses.replace(config, rope_scaling=None, family=family)
    lost = [name for name, value in dataclasses.asdict(wanted).items() if getattr(read, name) != value]
    if lost:
        raise InputError(
            f"{where}: {', '.join(lost)} of this {config.family} cannot be written as GGUF; use convert to-hf"
        )
    return fields, factors


def _add_fields(writer: GGUFWriter, fields: Mapping[str, Any], dtype: GGUFDtype, origin: Origin) -> None:
    writer.add_name(Path(origin.source).name or "UniversalNER")
    if origin.license:
        writer.add_license(origin.license)
    writer.add_file_type(KINDS[dtype][1])
    for key, value in fields.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(key, value)


def _name(place: Place) -> str:
    *parts, kind = place.name.split(".")
    if place.layer is None:
        return f"{GGUF_NAMES['.'.join(parts)]}.{kind}"
    return f"blk.{place.layer}.{GGUF_NAMES['.'.join(parts[3:])]}.{kind}"


def _kind(place: Place, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(place.shape) == 1:
        return GGMLQuantizationType.F32
    return wanted if place.shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else FALLBACK


def _bytes(place: Place, kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(place.shape) // block * size


def _quantised(source: Tensors, place: Place, kind: GGMLQuantizationType) -> np.ndarray:
    tensor = source.read(place.name).astype(np.float32, copy=False)
    module = place.name.split(".")[-2]
    if module in ("q_proj", "k_proj") and is_interleaved(source.config):
        tensor = _interleaved(tensor, source.config.head_dim)
    with np.errstate(over="ignore"):
        found = quantize(tensor, kind)
    if kind == GGMLQuantizationType.F16 and not np.isfinite(found).all():
        raise InputError(f"{source.where}: {place.name} has numbers that are no float16; choose --dtype bfloat16")
    return found


def _interleaved(weights: np.ndarray, head_dim: int) -> np.ndarray:
    """llama.cpp's order of rotary channels: pairs beside each other, not in two halves of a head."""
    halves = weights.reshape(-1, 2, head_dim // 2, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)
