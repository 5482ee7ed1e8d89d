"""Trained adapters apart from their base: where the base lies, how it is known again, how they come together."""

import contextlib
import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from uner_jax.model.adapters import AdapterConfig, adapt, join, merge, split
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import flatten, unflatten
from uner_jax.records import InputError
from uner_jax.weights.checkpoint import checkpoint_directory
from uner_jax.weights.checkpoint_tensors import CheckpointTensors

# Bytes that are read at the start, in the middle and at the end of each file of a base.
SAMPLE = 2**20


@dataclasses.dataclass(frozen=True)
class Adapter:
    """LoRA matrices by the names of their parameters, and the model that they adapt.

    Sides that are cut into heads are flat here: A is (layers, in, rank), B (layers, rank, out).
    """

    where: str
    config: AdapterConfig
    base: str
    leaves: dict[str, np.ndarray]

    def merged_into(self, model: Llama, dtype: jnp.dtype, mesh: Mesh | None) -> Llama:
        """The base, changed in place: one plain model in that dtype. Raises InputError if it has other shapes."""
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            trained, frozen = split(adapt(model, self.config, jax.random.key(0)))
            empty = flatten(trained)
            self._check_shapes({name: flat_shape(name, leaf.shape) for name, leaf in empty.items()})
            leaves = {name: _placed(self.leaves[name], leaf) for name, leaf in empty.items()}
            model = merge(join(unflatten(trained, leaves), frozen))
        model.compute_dtype = dtype
        return unflatten(model, {name: leaf.astype(dtype) for name, leaf in flatten(model).items()})

    def _check_shapes(self, expected: dict[str, tuple[int, ...]]) -> None:
        found = {name: matrices.shape for name, matrices in self.leaves.items()}
        if found != expected:
            name = min(name for name in found | expected if found.get(name) != expected.get(name))
            shapes = f"{found.get(name, 'not there')}; the base says {expected.get(name, 'not there')}"
            raise InputError(f"{self.where}: does not fit its base {self.base}: the shape of {name} is {shapes}")


def flat_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the matrices of that name, with heads and their width as one axis."""
    layers, *sides = shape
    if name.endswith(".a"):
        return layers, math.prod(sides[:-1]), sides[-1]
    return layers, sides[0], math.prod(sides[1:])


def _placed(flat: np.ndarray, like: jax.Array) -> jax.Array:
    array = flat.reshape(like.shape)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def adapter_metadata(config: AdapterConfig, source: str) -> dict[str, Any]:
    """What a checkpoint says of its adapters, and of the base that it does not hold."""
    base = checkpoint_directory(Path(source)) or Path(source)
    return {
        "config": dataclasses.asdict(config),
        "base": str(base.absolute()),
        "fingerprint": base_fingerprint(base),
    }


def check_base(metadata: dict[str, Any], where: str) -> str:
    """The base that the metadata of a checkpoint of adapters names; InputError if it is gone or another one."""
    base = Path(metadata["base"])
    if not base.exists():
        raise InputError(f"{where}: holds adapters only, and their base {base} is gone; put it back")
    if base_fingerprint(base) != metadata["fingerprint"]:
        raise InputError(f"{where}: holds adapters of another model than now lies in {base}; put back the one it was")
    return str(base)


def read_checkpoint_adapter(directory: Path) -> Adapter | None:
    """The adapters of a checkpoint of ours; None if it holds a whole model."""
    tensors = CheckpointTensors(directory)
    if tensors.adapter is None:
        return None
    here = SingleDeviceSharding(jax.local_devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here) for name, shape in tensors.saved_shapes().items()
    }
    saved = tensors.read_all(shapes)
    leaves = {name: np.asarray(leaf).reshape(flat_shape(name, leaf.shape)) for name, leaf in saved.items()}
    fields = dict(tensors.adapter["config"])
    config = AdapterConfig(**fields | {"targets": tuple(fields["targets"])})
    return Adapter(str(directory), config, check_base(tensors.adapter, str(directory)), leaves)


def base_fingerprint(path: Path) -> str:
    """A hash of the names and sizes of a model's files, and of samples of their bytes: all of 13 GB take too long."""
    digest = hashlib.sha256()
    for file in _weight_files(path):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as stream:
            for start in (0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)):
                stream.seek(start)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if checkpoint_directory(path):
        return [path / "_CHECKPOINT_METADATA", *sorted(file for file in (path / "model").rglob("*") if file.is_file())]
    return sorted([*path.glob("*.safetensors"), *path.glob("*config.json")])
