"""Which tensor of a Hugging Face LLaMA is which parameter of ours: one table for both ways.

Hugging Face's linear weights are (out, in); ours are kernels (in, out) whose sides may be cut into
heads. Ours stack the blocks along a leading layer axis, so a name with `{layer}` stands for many.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorName:
    """The tensor's name, and whether it is a matrix that stands transposed."""

    name: str
    transposed: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether the name stands for one tensor a layer."""
        return "{layer}" in self.name

    @property
    def _inputs(self) -> int:
        # the output projection takes its input from heads: two axes, not one.
        return 2 if self.name.endswith("o_proj.weight") else 1

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that holds a parameter (of one layer) of our `shape`."""
        if self.transposed:
            return math.prod(shape[self._inputs :]), math.prod(shape[: self._inputs])
        return (math.prod(shape),) if self.name.endswith(".bias") else shape

    def to_ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor (of one layer) in our layout."""
        return (tensor.T if self.transposed else tensor).reshape(shape)

    def to_theirs(self, parameter: np.ndarray) -> np.ndarray:
        """A parameter (of one layer) in their layout."""
        rows, *columns = self.their_shape(parameter.shape)
        if self.transposed:
            return np.ascontiguousarray(parameter.reshape(*columns, rows).T)
        return parameter.reshape(rows, *columns)


def _projection(ours: str, theirs: str) -> dict[str, TensorName]:
    return {
        f"layers.{ours}.kernel": TensorName(f"model.layers.{{layer}}.{theirs}.weight", transposed=True),
        f"layers.{ours}.bias": TensorName(f"model.layers.{{layer}}.{theirs}.bias"),
    }


TENSOR_NAMES = {
    "embedding": TensorName("model.embed_tokens.weight"),
    "layers.attention_norm.scale": TensorName("model.layers.{layer}.input_layernorm.weight"),
    **_projection("attention.query", "self_attn.q_proj"),
    **_projection("attention.key", "self_attn.k_proj"),
    **_projection("attention.value", "self_attn.v_proj"),
    **_projection("attention.output", "self_attn.o_proj"),
    "layers.attention.query_norm.scale": TensorName("model.layers.{layer}.self_attn.q_norm.weight"),
    "layers.attention.key_norm.scale": TensorName("model.layers.{layer}.self_attn.k_norm.weight"),
    "layers.mlp_norm.scale": TensorName("model.layers.{layer}.post_attention_layernorm.weight"),
    **_projection("mlp.gate", "mlp.gate_proj"),
    **_projection("mlp.up", "mlp.up_proj"),
    **_projection("mlp.down", "mlp.down_proj"),
    "norm.scale": TensorName("model.norm.weight"),
    "head": TensorName("lm_head.weight"),
}
