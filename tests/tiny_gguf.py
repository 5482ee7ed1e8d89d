"""GGUF files of any weights, written with llama.cpp's own package, as its converter lays them out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from uner_jax.model.config import LlamaConfig

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
# Where the float16 scales of a block lie for which the package has no quantiser.
SCALES = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}


def gguf_fields(config: LlamaConfig) -> dict[str, Any]:
    """What llama.cpp writes of an architecture; a Mistral is a llama to it."""
    name = "llama" if config.family == "mistral" else config.family
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
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
        fields["attention.sliding_window"] = config.sliding_window
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in fields.items()}


def write_gguf(
    path: Path, weights: Mapping[str, tuple[Kind, np.ndarray]], fields: Mapping[str, Any], head_dim: int
) -> None:
    """Write tensors that stand under Hugging Face's names, as the bytes of their kind (see `quantised`)."""
    writer = gguf.GGUFWriter(path, str(fields["general.architecture"]))
    for key, value in fields.items():
        if key != "general.architecture":
            _add_field(writer, key, value)
    for name, (kind, packed) in weights.items():
        writer.add_tensor(gguf_name(name), interleaved(name, packed, fields, head_dim), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add[type(value)](key, value)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    *parts, kind = name.split(".")
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{NAMES['.'.join(parts[3:])]}.{kind}"
    return f"{NAMES['.'.join(parts)]}.{kind}" if ".".join(parts) in NAMES else name


def interleaved(name: str, packed: np.ndarray, fields: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """The rows of queries and keys in pairs of rotary channels, where llama.cpp has them so."""
    rotated = name.split(".")[-2] in ("q_proj", "k_proj")
    if not rotated or fields["general.architecture"] not in ("llama", "smollm3"):
        return packed
    halves = packed.reshape(-1, 2, head_dim // 2, *packed.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(packed.shape)


def quantised(weights: np.ndarray, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """The weights as bytes of that kind; those of kinds that the package only reads are drawn."""
    if kind not in SCALES:
        return gguf.quants.quantize(weights, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(256, size=(weights.size // block, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = rng.uniform(-0.01, 0.01, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(*weights.shape[:-1], -1)
