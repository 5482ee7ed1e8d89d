"""GGUF files, in: the format of llama.cpp, dequantised tensor by tensor."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from uner_jax.gguf_file import GGUFTensor, read_gguf_head
from uner_jax.model.config import LlamaConfig
from uner_jax.records import InputError
from uner_jax.weights.gguf_config import ARCHITECTURES, architecture_name, config_from_gguf, llama3_scaling

# GGUF's names of a block's tensors -> Hugging Face's.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE_FACTORS = "rope_freqs.weight"


class GGUFTensors:
    """The tensors of a GGUF file under Hugging Face's names and in its layout, in float32."""

    def __init__(self, path: Path):
        self.where = str(path)
        head = read_gguf_head(path)
        # pages of the file, read as they are asked for.
        self._bytes = np.memmap(path, np.uint8, "r")
        try:
            if head.fields.get("split.count", 1) != 1:
                raise InputError("one of several parts of a model; merge them with llama.cpp's gguf-split --merge")
            self._interleaved = ARCHITECTURES[architecture_name(head.fields)].interleaved
            for tensor in head.tensors.values():
                self._check(tensor)
            factors = head.tensors.pop(ROPE_FACTORS, None)
            self._tensors = {_hf_name(name): tensor for name, tensor in head.tensors.items()}
            self.config: LlamaConfig = config_from_gguf(head.fields, self._tensors)
            if factors is not None:
                scaling = llama3_scaling(self.config, self._dequantised(factors))
                self.config = dataclasses.replace(self.config, rope_scaling=scaling)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._tensors)

    @property
    def dtype(self) -> np.dtype:
        """Of what is read, whatever the file is quantised as."""
        return np.dtype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, dequantised."""
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32, (out, in)."""
        weights = self._dequantised(self._tensors[name])
        rotated = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        heads = rotated.get(name.split(".")[-2], 0) if self._interleaved else 0
        # a wrong shape is for load_model to report.
        return _half_split(weights, heads) if heads * self.config.head_dim == weights.shape[0] else weights

    def parameters(self) -> dict[str, Any]:
        """How many there are, their bytes in the file, and how many in each quantisation."""
        counts: Counter[str] = Counter()
        size = 0
        for tensor in self._tensors.values():
            kind = GGMLQuantizationType(tensor.kind)
            counts[kind.name] += math.prod(tensor.shape)
            size += _byte_size(tensor, kind)
        return {"count": sum(counts.values()), "bytes": size, "dtypes": dict(counts)}

    def check_read(self) -> None:
        """The format has no checksums."""

    def _dequantised(self, tensor: GGUFTensor) -> np.ndarray:
        kind = GGMLQuantizationType(tensor.kind)
        size = _byte_size(tensor, kind)
        rows = self._bytes[tensor.start : tensor.start + size].reshape(*tensor.shape[:-1], -1)
        # a scale that is no number is as the file has it.
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(dequantize(rows, kind), np.float32)

    def _check(self, tensor: GGUFTensor) -> None:
        """InputError if the tensor is of a type that cannot be dequantised, or does not lie in the file."""
        try:
            kind = GGMLQuantizationType(tensor.kind)
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (ValueError, KeyError, NotImplementedError) as error:
            names = {kind.value: kind.name for kind in GGMLQuantizationType}
            name = names.get(tensor.kind, f"type {tensor.kind}")
            raise InputError(f"{tensor.name} is quantised as {name}, which is not supported") from error
        end = tensor.start + _byte_size(tensor, kind)
        if end > self._bytes.size:
            raise InputError(
                f"not readable as GGUF: {tensor.name} of shape {tensor.shape} ends at byte {end}, "
                f"the file at {self._bytes.size}"
            )


def _byte_size(tensor: GGUFTensor, kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    if tensor.shape[-1] % block:
        raise InputError(f"{tensor.name} has rows of {tensor.shape[-1]}, no multiple of the {block} of {kind.name}")
    return math.prod(tensor.shape) // block * size


def _half_split(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary channels: from interleaved pairs to two halves a head."""
    out = weights.shape[0]
    paired = weights.reshape(heads, out // heads // 2, 2, *weights.shape[1:])
    return paired.swapaxes(1, 2).reshape(weights.shape)


def _hf_name(name: str) -> str:
    *parts, kind = name.split(".")
    if len(parts) == 1 and parts[0] in OUTER_NAMES:
        return f"{OUTER_NAMES[parts[0]]}.{kind}"
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.{kind}"
    raise InputError(f"tensor {name!r} is not one of a LLaMA")
