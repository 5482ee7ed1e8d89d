"""LoRA: a frozen model and, beside its kernels, products of two thin matrices that are trained (arXiv 2106.09685)."""

import dataclasses
import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from uner_jax.mesh import constrain
from uner_jax.model.layers import Projection, contract
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import flatten, unflatten
from uner_jax.model.quantised import Quantised, QuantisedKind
from uner_jax.records import InputError

# L layers

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BasePrecision = Literal["float32", "bfloat16"] | QuantisedKind
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """LoRA adapters on linear layers of the blocks; the rest of the model, the base, is frozen."""

    rank: int = 0
    """Width of the adapters; 0 trains the whole model instead."""
    alpha: float = 16.0
    """What the adapters give is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapters' inputs that is set to 0 in each step."""
    targets: tuple[Target, ...] = TARGETS
    """Linear layers that get an adapter, by their names in Hugging Face's LLaMA."""
    base: BasePrecision = "float32"
    """How the frozen kernels are kept; norms, biases, embedding and head stay float32. int8, int4, nf4: QLoRA."""

    def __post_init__(self):
        if not self.rank >= 0:
            raise InputError(f"adapter.rank must be at least 0, found {self.rank}")
        if not self.alpha > 0:
            raise InputError(f"adapter.alpha must be greater than 0, found {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"adapter.dropout must be in 0..1, without 1, found {self.dropout}")
        if self.rank and not self.targets:
            raise InputError(f"adapter.targets is empty; name at least one of {', '.join(TARGETS)}")
        if not self.rank and self.base != "float32":
            raise InputError(f"adapter.base {self.base} freezes the model; set adapter.rank too, as to 16")


class Lora(nnx.Module):
    """The adapters of one projection in all layers: A, drawn as PEFT draws it, and B, which begins at 0."""

    def __init__(self, kernel: nnx.Param, inputs: int, config: AdapterConfig, key: jax.Array):
        (layers, *shape), axes = kernel.shape, kernel.get_metadata()["axes"]
        bound = math.prod(shape[:inputs]) ** -0.5
        a = jax.random.uniform(key, (layers, *shape[:inputs], config.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((layers, config.rank, *shape[inputs:]), jnp.float32)
        a_axes, b_axes = (*axes[:inputs], "rank"), ("rank", *axes[inputs:])
        self.a = nnx.LoRAParam(constrain(a, "layers", *a_axes), axes=a_axes)
        self.b = nnx.LoRAParam(constrain(b, "layers", *b_axes), axes=b_axes)
        self.inputs = inputs
        self.scaling = config.alpha / config.rank
        self.dropout = config.dropout
        self.key: nnx.Variable | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """What one layer's adapter adds to the projection of x."""
        if self.key is not None:
            kept = jax.random.bernoulli(self.key[...], 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), jnp.zeros_like(x))
        return contract(contract(x, self.a[...], self.inputs), self.b[...], 1) * self.scaling

    def product(self) -> jax.Array:
        """One layer's adapter as a kernel, float32."""
        return contract(self.a[...], self.b[...], 1) * self.scaling


def projections(model: Llama) -> dict[Target, Projection]:
    """The stacked linear layers of the blocks."""
    attention, mlp = model.layers.attention, model.layers.mlp
    layers = attention.query, attention.key, attention.value, attention.output, mlp.gate, mlp.up, mlp.down
    return dict(zip(TARGETS, layers, strict=True))


def adapt(model: Llama, config: AdapterConfig, key: jax.Array) -> Llama:
    """The model with adapters on the targets, kernels as `config.base` says, and the rest in float32.

    It takes the model apart, a kernel at a time, so that no more than one is there twice.
    """
    for number, (target, projection) in enumerate(projections(model).items()):
        if target in config.targets:
            own_key = jax.random.fold_in(key, number)
            projection.adapter = _new_lora(config, projection.inputs, projection.kernel, own_key)
    freeze(model, config.base)
    leaves = flatten(model)
    rest = {name: leaf.astype(jnp.float32) for name, leaf in leaves.items() if not _is_of_projection(name)}
    return unflatten(model, leaves | rest)


def freeze(model: Llama, base: BasePrecision) -> Llama:
    """The model, changed in place: its kernels as they are kept where they are not trained."""
    for projection in projections(model).values():
        projection.kernel = _frozen(projection.inputs, base, projection.kernel)
    return model


def _is_of_projection(name: str) -> bool:
    return ".kernel" in name or ".adapter." in name


@partial(jax.jit, static_argnums=(0, 1))
def _new_lora(config: AdapterConfig, inputs: int, kernel: nnx.Param, key: jax.Array) -> Lora:
    return Lora(kernel, inputs, config, key)


@partial(jax.jit, static_argnums=(0, 1))
def _frozen(inputs: int, base: BasePrecision, kernel: nnx.Param) -> Quantised | nnx.Param:
    axes = kernel.get_metadata()["axes"]
    if base == "float32" or base == "bfloat16":
        return nnx.Param(kernel[...].astype(base), axes=axes)
    return Quantised(kernel[...], axes, inputs, base)


def merge(model: Llama) -> Llama:
    """The model, changed in place: kernels + alpha / r A B in float32, and no adapters: it computes the same."""
    for projection in projections(model).values():
        projection.kernel = _merged(projection.kernel, projection.adapter)
        projection.adapter = None
    return model


@jax.jit
def _merged(kernel: nnx.Param | Quantised, adapter: Lora | None) -> nnx.Param:
    def of_layer(parts: tuple[nnx.Param | Quantised, Lora | None]) -> jax.Array:
        kernel, adapter = parts
        whole = kernel.dequantised(jnp.float32) if isinstance(kernel, Quantised) else kernel[...].astype(jnp.float32)
        return whole if adapter is None else whole + adapter.product()

    axes = kernel.axes if isinstance(kernel, Quantised) else kernel.get_metadata()["axes"]
    return nnx.Param(constrain(jax.lax.map(of_layer, (kernel, adapter)), "layers", *axes), axes=axes)


def split(model: Llama) -> tuple[Llama, Llama]:
    """The part that is trained and the part that is frozen: the model, with None where the other has an array.

    Adapters are trained if there are any, and everything if there are none.
    """
    leaves = flatten(model)
    trained = {name for name in leaves if ".adapter." in name} or leaves.keys()
    return (
        unflatten(model, {name: leaf if name in trained else None for name, leaf in leaves.items()}),
        unflatten(model, {name: None if name in trained else leaf for name, leaf in leaves.items()}),
    )


def join(trained: Llama, frozen: Llama) -> Llama:
    """What `split` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None)


def with_dropout(model: Llama, key: jax.Array) -> Llama:
    """The model, changed in place: its adapters drop inputs as the key says, if they have a dropout."""
    for number, projection in enumerate(projections(model).values()):
        adapter = projection.adapter
        if isinstance(adapter, Lora) and adapter.dropout:
            keys_L = jax.random.split(jax.random.fold_in(key, number), model.config.num_hidden_layers)
            adapter.key = nnx.Variable(keys_L)
    return model
