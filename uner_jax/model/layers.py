"""The parts of a block: parameters with logical axes, RMSNorm, attention, SwiGLU."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from uner_jax.mesh import constrain
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention as AttentionKernel
from uner_jax.model.quantised import Quantised
from uner_jax.model.rotary import rotate

# B batch, T tokens, D model width, H query heads, K kv heads, Dh head width, F mlp width

INIT_STDDEV = 0.02


def normal_param(rngs: nnx.Rngs, shape: Sequence[int], axes: tuple[str, ...]) -> nnx.Param:
    """A float32 parameter drawn from N(0, 0.02^2), with its logical axes (see `mesh.ShardingRules`)."""
    return nnx.Param(INIT_STDDEV * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), axes=axes)


def constant_param(value: float, shape: Sequence[int], axes: tuple[str, ...]) -> nnx.Param:
    """A float32 parameter of one value."""
    return nnx.Param(jnp.full(tuple(shape), value, jnp.float32), axes=axes)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float, axis: str = "norm"):
        self.scale = constant_param(1.0, (width,), (axis,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """The normalised input, of any leading shape, in its own dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...].astype(x.dtype) * normed.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """Contract the last `inputs` axes of x with the first of the kernel, in the dtype of x.

    Products are summed in float32 on the way forward and back, and the kernel's gradient stays so: with
    bfloat16 activations no sum is rounded, and CPUs with bfloat16 products have a fast path for this alone.
    """
    return _dot(x, _rounded(kernel, x.dtype), range(x.ndim - inputs, x.ndim), range(inputs)).astype(x.dtype)


def _contract_forward(x: jax.Array, kernel: jax.Array, inputs: int):
    return contract(x, kernel, inputs), (x, kernel)


def _contract_backward(inputs: int, saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, kernel = saved
    outer = x.ndim - inputs
    dx = _dot(g, _rounded(kernel, g.dtype), range(outer, g.ndim), range(inputs, kernel.ndim))
    dkernel = _dot(x, g, range(outer), range(outer))
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


contract.defvjp(_contract_forward, _contract_backward)


def _rounded(kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The kernel in the dtype of the activations.

    It is rounded in float32 first: of a mere cast the TPU compiler sees that nobody reads the float32, and casts the
    kernels of all layers before the backward loop over them, half as much memory again as they take.
    """
    if (kernel.dtype, dtype) == (jnp.float32, jnp.bfloat16):
        kernel = jax.lax.reduce_precision(kernel, exponent_bits=8, mantissa_bits=7)
    return kernel.astype(dtype)


def _dot(a: jax.Array, b: jax.Array, a_axes: range, b_axes: range) -> jax.Array:
    dimensions = ((tuple(a_axes), tuple(b_axes)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


class Projection(nnx.Module):
    """An einsum with a kernel, and a bias where the config has one; computes in the dtype of its input.

    `model.adapters` may quantise the kernel, and set beside it an adapter whose result is added.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: Sequence[int],
        axes: tuple[str, ...],
        bias: bool,
        inputs: int = 1,
    ):
        self.kernel: nnx.Param | Quantised = normal_param(rngs, shape, axes)
        self.adapter: Callable[[jax.Array], jax.Array] | None = nnx.data(None)
        self.bias = constant_param(0.0, shape[inputs:], axes[inputs:]) if bias else None
        self.inputs = inputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """Contract the last `inputs` axes of x with the first of the kernel."""
        y = self._product(x) if self.adapter is None else self._product(x) + self.adapter(x)
        # named for the remat policy "dots": what is inside of `contract` no policy sees.
        y = checkpoint_name(y, "projection")
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def _product(self, x: jax.Array) -> jax.Array:
        if not isinstance(self.kernel, Quantised):
            return contract(x, self.kernel[...], self.inputs)
        # its own checkpoint: under no remat policy is a dequantised kernel kept for the way back.
        dequantise = jax.checkpoint(lambda x, kernel: contract(x, kernel.dequantised(x.dtype), self.inputs))
        return dequantise(x, self.kernel)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions, of normalised queries and keys where the config says so."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        width, head = config.hidden_size, config.head_dim
        heads, kv_heads, bias = config.num_attention_heads, config.num_key_value_heads, config.query_key_value_bias
        self.query = Projection(rngs, (width, heads, head), ("embed", "heads", "head_dim"), bias)
        self.key = Projection(rngs, (width, kv_heads, head), ("embed", "kv_heads", "head_dim"), bias)
        self.value = Projection(rngs, (width, kv_heads, head), ("embed", "kv_heads", "head_dim"), bias)
        out_axes = ("heads", "head_dim", "embed")
        self.output = Projection(rngs, (heads, head, width), out_axes, config.attention_bias, inputs=2)
        norm = (head, config.rms_norm_eps, "head_dim")
        self.query_norm = RMSNorm(*norm) if config.query_key_norm else None
        self.key_norm = RMSNorm(*norm) if config.query_key_norm else None
        self.config = config

    def project(self, x_BTD: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries (B, T, H, Dh) and keys, and values (B, T, K, Dh)."""
        q_BTHDh = constrain(self.query(x_BTD), "batch", None, "heads", None)
        k_BTKDh = constrain(self.key(x_BTD), "batch", None, "kv_heads", None)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHDh, k_BTKDh = self.query_norm(q_BTHDh), self.key_norm(k_BTKDh)
        q_BTHDh, k_BTKDh = (rotate(x, positions_BT, self.config) for x in (q_BTHDh, k_BTKDh))
        v_BTKDh = constrain(self.value(x_BTD), "batch", None, "kv_heads", None)
        # named for the remat policy "qkv".
        return checkpoint_name(q_BTHDh, "qkv"), checkpoint_name(k_BTKDh, "qkv"), checkpoint_name(v_BTKDh, "qkv")

    def finish(self, mixed_BTHDh: jax.Array) -> jax.Array:
        """Project what the heads attended to back to (B, T, D)."""
        return self.output(constrain(mixed_BTHDh, "batch", None, "heads", None))


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate = Projection(rngs, (width, inner), ("embed", "mlp"), bias)
        self.up = Projection(rngs, (width, inner), ("embed", "mlp"), bias)
        self.down = Projection(rngs, (inner, width), ("mlp", "embed"), bias)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) to (B, T, D)."""
        inner_BTF = jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(constrain(inner_BTF, "batch", None, "mlp"))


class Block(nnx.Module):
    """Attention and MLP, each on the normalised input and added to it."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None,
        attend: AttentionKernel,
    ) -> jax.Array:
        """(B, T, D) to (B, T, D), over whole rows."""
        x_BTD = checkpoint_name(x_BTD, "block_input")
        q, k, v = self.attention.project(self.attention_norm(x_BTD), positions_BT)
        return self.finish(x_BTD, attend(q, k, v, segment_ids_BT))

    def finish(self, x_BTD: jax.Array, mixed_BTHDh: jax.Array) -> jax.Array:
        """Add what attention gave, and the MLP's part."""
        x_BTD = constrain(x_BTD + self.attention.finish(mixed_BTHDh), "batch", None, None)
        return constrain(x_BTD + self.mlp(self.mlp_norm(x_BTD)), "batch", None, None)
