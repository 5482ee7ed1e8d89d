"""A model's weights as tensors under Hugging Face's names, one at a time, wherever they lie."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten
from uner_jax.records import InputError
from uner_jax.weights.names import TENSOR_NAMES, TensorName

# columns that are turned at a time: the processor's cache holds them.
TILE = 128
# larger than any LLaMA, and small enough that shapes made of them are numbers of 63 bits.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
    "head_dim": 2**12,
}


class Tensors(Protocol):
    """A source of tensors under Hugging Face's names and in its layout; `dtype` is that of the norms."""

    where: str
    config: LlamaConfig

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102
    def names(self) -> set[str]: ...  # noqa: D102
    def shape(self, name: str) -> tuple[int, ...]: ...  # noqa: D102
    def read(self, name: str) -> np.ndarray: ...  # noqa: D102
    def check_read(self) -> None: ...  # noqa: D102 (raises if what was read is not what was once written)


class Place(NamedTuple):
    """A tensor of theirs, and the parameter of ours that it is, or is a layer of; both shapes are without layers."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    layer: int | None
    own_shape: tuple[int, ...]

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        """`target[...] = source`, of which one is a part of the tensor seen as ours: in tiles, five times as fast."""
        columns = self.shape[0] if self.table.transposed else source.shape[-1]
        source, target = source.reshape(-1, columns), target.reshape(-1, columns)  # views, also of what is turned
        for start in range(0, columns, TILE):
            target[:, start : start + TILE] = source[:, start : start + TILE]

    @property
    def table(self) -> TensorName:
        """How one becomes the other."""
        return TENSOR_NAMES[self.parameter]


def places(config: LlamaConfig) -> Iterator[Place]:
    """Every tensor of such a model, a parameter of ours after the other, its layers in order."""
    for parameter, leaf in flatten(abstract_model(config)).items():
        theirs = TENSOR_NAMES[parameter]
        shape = leaf.shape[1:] if theirs.per_layer else leaf.shape
        for layer in range(config.num_hidden_layers) if theirs.per_layer else (None,):
            yield Place(theirs.name.format(layer=layer), theirs.their_shape(shape), parameter, layer, shape)


class ModelTensors:
    """The tensors of a model in memory."""

    def __init__(self, model: Llama):
        self.where = "the model"
        self.config = model.config
        self._leaves = flatten(model)
        self._places = {place.name: place for place in places(model.config)}

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the embedding."""
        return np.dtype(self._leaves["embedding"].dtype)

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._places[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        place = self._places[name]
        leaf = self._leaves[place.parameter]
        return place.table.to_theirs(np.asarray(leaf if place.layer is None else leaf[place.layer]))

    def check_read(self) -> None:
        """Nothing is known of what it should be."""


def check_sizes(config: LlamaConfig, where: str) -> None:
    """InputError if a size is larger than that of any model: nothing may be made of it."""
    for name, largest in LARGEST.items():
        size = getattr(config, name)
        if type(size) is not int or not 0 < size <= largest:
            raise InputError(f"{where}: {name} = {size!r:.60} is no LLaMA's; expected 1 to {largest:,}")


def check_tensors(source: Tensors) -> None:
    """InputError unless the source has exactly the tensors that its config says, in their shapes."""
    expected = {place.name: place.shape for place in places(source.config)}
    found = source.names()
    if source.config.tie_word_embeddings:
        found -= {TENSOR_NAMES["head"].name}  # a copy of the embedding that some exports carry
    missing, unknown = sorted(expected.keys() - found), sorted(found - expected.keys())
    if missing or unknown:
        parts = [f"{what} {len(names)} tensor(s): {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
                 for what, names in (("lacks", missing), ("has unknown", unknown)) if names]  # fmt: skip
        raise InputError(f"{source.where}: {'; '.join(parts)}; the config does not fit the weights")
    for name, shape in expected.items():
        if source.shape(name) != shape:
            raise InputError(f"{source.where}: {name} has shape {source.shape(name)}; the config says {shape}")
