"""GGUF files, out: what llama.cpp runs, written a tensor at a time."""

import math
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

from uner_jax.command import Progress
from uner_jax.model.config import LlamaConfig
from uner_jax.records import InputError, atomic_path
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.chat import chat_template
from uner_jax.weights.directory import check_room
from uner_jax.weights.gguf import BLOCK_NAMES, OUTER_NAMES
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
    if source.config.rope_scaling is not None:
        raise InputError(
            f"{source.where}: rotary scaling is not written as GGUF; use convert to-hf and llama.cpp's own"
        )
    kinds = {place: _kind(place, KINDS[dtype][0]) for place in places(source.config)}
    total = sum(_bytes(place, kind) for place, kind in kinds.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(path, total)
    with (
        atomic_path(path) as temporary,
        closing(GGUFWriter(temporary, "llama")) as writer,
        Progress("writing weights", total, "B") as shown,
    ):
        _add_fields(writer, source.config, dtype, origin)
        add_vocabulary(writer, tokenizer, source.config.vocab_size)
        template = chat_template(tokenizer, origin.noun)
        if template is not None:
            writer.add_chat_template(template)
        for place, kind in kinds.items():
            # the dtype only says that the shape is one of numbers, not of bytes.
            writer.add_tensor_info(_name(place), place.shape, np.dtype(np.float32), _bytes(place, kind), kind)
        write_head(writer)
        for place, kind in kinds.items():
            writer.write_tensor_data(_quantised(source, place, kind))
            shown.advance(_bytes(place, kind))
        source.check_read()
    return total


def _add_fields(writer: GGUFWriter, config: LlamaConfig, dtype: GGUFDtype, origin: Origin) -> None:
    writer.add_name(Path(origin.source).name or "UniversalNER")
    if origin.license:
        writer.add_license(origin.license)
    writer.add_file_type(KINDS[dtype][1])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


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
    if module in ("q_proj", "k_proj"):
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
