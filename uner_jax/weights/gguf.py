"""GGUF files, in: the format of llama.cpp, dequantised tensor by tensor."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from uner_jax.model.config import LlamaConfig
from uner_jax.records import InputError

# GGUF's names of a block's tensors -> Hugging Face's.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GGUFTensors:
    """The tensors of a GGUF file under Hugging Face's names and in its layout, in float32."""

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
            raise InputError(f"{path}: not readable as GGUF: {error}") from error
        self._tensors = {_hf_name(tensor.name, self.where): tensor for tensor in self._reader.tensors}
        try:
            self.config = self._read_config()
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
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32, (out, in)."""
        tensor = self._tensors[name]
        try:
            weights = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{self.where}: {tensor.name} is quantised as {tensor.tensor_type.name}: {error}"
            ) from error
        weights = np.asarray(weights, np.float32)
        rotated = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        heads = rotated.get(name.split(".")[-2], 0)
        # a wrong shape is for load_model to report.
        return _half_split(weights, heads) if heads * self.config.head_dim == weights.shape[0] else weights

    def parameters(self) -> dict[str, Any]:
        """How many there are, their bytes in the file, and how many in each quantisation."""
        counts: Counter[str] = Counter()
        for tensor in self._tensors.values():
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
        size = sum(int(tensor.n_bytes) for tensor in self._tensors.values())
        return {"count": sum(counts.values()), "bytes": size, "dtypes": dict(counts)}

    def check_read(self) -> None:
        """The format has no checksums."""

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is None:
            return default
        return field.contents()

    def _read_config(self) -> LlamaConfig:
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise InputError(f'architecture {architecture!r} is not supported; expected "llama"')
        if self._field("llama.rope.scaling.type", "none") != "none":
            raise InputError("rotary scaling of a GGUF file is not supported; convert from the HF directory")
        if "rope_freqs.weight" in self._tensors:
            raise InputError("rope_freqs (llama3 scaling) is not supported; convert from the HF directory")
        if self._field("llama.expert_count", 0):
            raise InputError("a mixture of experts is not supported")

        def number(key: str, default: int | None = None) -> int:
            value = self._field(f"llama.{key}", default)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"the field llama.{key} must be a positive number, found {value!r}")
            return value

        heads, width = number("attention.head_count"), number("embedding_length")
        head_dim = number("attention.key_length", width // heads)
        if self._field("llama.rope.dimension_count", head_dim) != head_dim:
            raise InputError("rotary positions on a part of each head are not supported")
        if "model.embed_tokens.weight" not in self._tensors:
            raise InputError("lacks the tensor token_embd.weight")
        return LlamaConfig(
            vocab_size=self._tensors["model.embed_tokens.weight"].data.shape[0],
            hidden_size=width,
            intermediate_size=number("feed_forward_length"),
            num_hidden_layers=number("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=number("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=number("context_length"),
            rms_norm_eps=float(self._field("llama.attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=float(self._field("llama.rope.freq_base", 10_000.0)),
            attention_bias="model.layers.0.self_attn.q_proj.bias" in self._tensors,
            mlp_bias="model.layers.0.mlp.gate_proj.bias" in self._tensors,
            tie_word_embeddings="lm_head.weight" not in self._tensors,
        )


def _half_split(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary channels: from interleaved pairs to two halves a head."""
    out = weights.shape[0]
    paired = weights.reshape(heads, out // heads // 2, 2, *weights.shape[1:])
    return paired.swapaxes(1, 2).reshape(weights.shape)


def _hf_name(name: str, where: str) -> str:
    if name == "rope_freqs.weight":
        return name
    *parts, kind = name.split(".")
    if len(parts) == 1 and parts[0] in OUTER_NAMES:
        return f"{OUTER_NAMES[parts[0]]}.{kind}"
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.{kind}"
    raise InputError(f"{where}: tensor {name!r} is not one of a LLaMA")
