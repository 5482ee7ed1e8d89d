"""The parameters of a checkpoint of ours: all at once onto a mesh, or one tensor after another."""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from uner_jax.records import InputError
from uner_jax.weights.checkpoint import config_of, read_items, read_metadata
from uner_jax.weights.integrity import DamagedError, check_digests, compare_digests, read_whole
from uner_jax.weights.stored import StoredArray, open_array
from uner_jax.weights.tensors import Place, places

# weights of a model compress to three quarters; those of a test, all equal, to a thousandth: see SLACK.
COMPRESSION = 8
SLACK = 2**30


class CheckpointTensors:
    """The parameters of a checkpoint of ours."""

    def __init__(self, directory: Path):
        self.where = str(directory)
        self.directory = epath.Path(directory.absolute())
        self._metadata = read_metadata(directory)
        self.config = config_of(self._metadata, self.where)
        self.adapter: dict[str, Any] | None = self._metadata.get("adapter")
        self._places = {place.name: place for place in places(self.config)}
        self._arrays: dict[str, StoredArray] = {}
        self._held: tuple[str, int, Any] = "", 0, None

    def read_all(self, abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """All parameters, as the shapes, dtypes and shardings given say. Raises InputError if one does not fit."""
        saved = self._saved
        found = {name: tuple(leaf.shape) for name, leaf in saved.items()}
        expected = {name: leaf.shape for name, leaf in abstract.items()}
        if found != expected:
            name = min(name for name in found | expected if found.get(name) != expected.get(name))
            shapes = f"{found.get(name, 'not there')}; the config says {expected.get(name, 'not there')}"
            raise InputError(f"{self.where}: the shape of {name} is {shapes}")
        _check_bytes(self.where, saved)
        # in the dtype of the file first: the digests are of its bits.
        as_saved = {
            name: jax.ShapeDtypeStruct(leaf.shape, saved[name].dtype, sharding=leaf.sharding)
            for name, leaf in abstract.items()
        }
        leaves = read_items(Path(self.where), {"model": as_saved})["model"]
        check_digests(self.where, self._metadata, "model", leaves)
        return {name: leaves.pop(name).astype(leaf.dtype) for name, leaf in abstract.items()}

    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""
        return {name: tuple(saved.shape) for name, saved in self._saved.items()}

    def saved(self) -> Iterator[tuple[np.dtype, tuple[int, ...]]]:
        """Dtype and shape of each parameter."""
        for leaf in self._saved.values():
            yield np.dtype(leaf.dtype), tuple(leaf.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype that the parameters were saved in."""
        return np.dtype(self._saved["embedding"].dtype)

    def names(self) -> set[str]:
        """The names of all tensors, as far as there are parameters for them."""
        return {name for name, place in self._places.items() if place.parameter in self._saved}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._places[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor in the dtype of the checkpoint."""
        place = self._places[name]
        array = self._array(place.parameter)
        self._check_array(array, place)
        theirs = np.empty(place.shape, array.dtype)
        ours = place.table.to_ours(theirs, place.own_shape)  # a view: what is put there stands in theirs
        if place.layer is None:
            for block in array.blocks():
                place.copy(array.read(block), ours[block])
        elif array.layers_at_once == 1:
            for block in array.blocks_of(place.layer):
                place.copy(array.read(block)[0], ours[block[1:]])
        else:
            place.copy(self._layer(array, place.parameter, place.layer), ours)
        return theirs

    def check_read(self) -> None:
        """DamagedError if a parameter all of whose tensors were read, in order, is not what was written."""
        read = {name: array.digest for name, array in self._arrays.items() if array.digest is not None}
        expected = self._metadata.get("digests", {}).get("model", {})
        compare_digests(self.where, "model", {name: expected[name] for name in read if name in expected}, read)

    def _array(self, parameter: str) -> StoredArray:
        if parameter not in self._arrays:
            self._arrays[parameter] = open_array(Path(self.where) / "model", parameter)
        return self._arrays[parameter]

    def _check_array(self, array: StoredArray, place: Place) -> None:
        shape = place.own_shape if place.layer is None else (self.config.num_hidden_layers, *place.own_shape)
        if array.shape != shape or array.dtype != self.dtype or not array.chunks_fit:
            found = f"{array.dtype} {array.shape}; the config says {self.dtype} {shape}"
            raise DamagedError(f"{self.where}: damaged: {place.parameter} is stored as {found}")

    def _layer(self, array: StoredArray, parameter: str, layer: int) -> np.ndarray:
        """A layer of a checkpoint whose chunks hold several; those that lie together are held until others come."""
        first = layer // array.layers_at_once * array.layers_at_once
        if self._held[:2] != (parameter, first):
            self._held = "", 0, None
            last = min(first + array.layers_at_once, array.shape[0])
            self._held = parameter, first, array.read((slice(first, last),))
        return self._held[2][layer - first]

    @cached_property
    def _saved(self) -> dict[str, Any]:
        saved = read_whole(self.where, lambda: ocp.checkpointables_metadata(self.directory)).metadata["model"]
        if saved is None:
            raise InputError(f"{self.where}: the list of the model's parameters is not readable; copy it again, whole")
        return saved


def _check_bytes(where: str, saved: dict[str, Any]) -> None:
    """DamagedError if the parameters are said to be many times what lies on disk: memory is not taken for that."""
    said = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in saved.values())
    there = sum(file.stat().st_size for file in Path(where, "model").rglob("*") if file.is_file())
    if said > COMPRESSION * there + SLACK:
        raise DamagedError(f"{where}: damaged: {said:,} bytes of parameters are said to be in files of {there:,}")
