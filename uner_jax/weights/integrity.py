"""Whether a checkpoint holds what was written: Orbax takes a flipped bit in an array's file for another number."""

import gc
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.records import InputError

T = TypeVar("T")

PLACE_FACTOR = 0x9E3779B1
ROUNDS = (16, 0x85EBCA6B), (13, 0xC2B2AE35)
LANES = 2**16  # elements at a time, which the processor's cache holds
PLACES = np.arange(LANES, dtype=np.uint32) * np.uint32(PLACE_FACTOR)

ERROR_LENGTH = 200  # characters shown of an error, which may quote a whole specification


class DamagedError(InputError):
    """A checkpoint cannot be read, or does not hold what was written."""


def sealed(
    metadata: Mapping[str, Any],
    items: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The metadata with digests of all that the checkpoint's items hold, some of them known, and of itself."""
    digests = {**{item: digests_of(leaves) for item, leaves in items.items()}, **known}
    with_digests = {**metadata, "digests": digests}
    return {**with_digests, "seal": _hash(with_digests)}


def check_seal(where: str, metadata: Mapping[str, Any]) -> None:
    """DamagedError if the metadata is not what was written; such without a seal is taken as it is."""
    rest = {name: value for name, value in metadata.items() if name != "seal"}
    if metadata.get("seal", _hash(rest)) != _hash(rest):
        raise DamagedError(f"{where}: damaged: its metadata does not match its checksum")


def check_digests(where: str, metadata: Mapping[str, Any], item: str, leaves: Mapping[str, Any]) -> None:
    """DamagedError if what was read of an item is not what was written; an item without digests passes."""
    expected = metadata.get("digests", {}).get(item)
    if expected is None:
        return
    compare_digests(where, item, expected, digests_of(leaves))


def compare_digests(where: str, item: str, expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    """DamagedError if a digest is not the one expected."""
    wrong = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
    if wrong:
        listed = ", ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else "")
        raise DamagedError(f"{where}: damaged: {len(wrong)} of {item} do not match their checksums ({listed})")


def digests_of(leaves: Mapping[str, Any]) -> dict[str, int]:
    """A 32-bit digest of each of these arrays or texts, by name; arrays may lie on any mesh."""
    texts = {name: zlib.crc32(leaf.encode("utf-8")) for name, leaf in leaves.items() if isinstance(leaf, str)}
    arrays = {name: leaf for name, leaf in leaves.items() if not isinstance(leaf, str)}
    digests = jax.device_get(_array_digests(arrays)) if arrays else {}
    return texts | {name: int(digest) for name, digest in digests.items()}


class Digest:
    """The digest of an array that comes in blocks, one behind the other, in its order; nothing is copied."""

    def __init__(self) -> None:
        self.value = 0
        self.elements = 0

    def add(self, block: np.ndarray) -> None:
        """Take in the next elements."""
        bits = block.reshape(-1).view(f"uint{8 * block.dtype.itemsize}")
        for start in range(0, bits.size, LANES):
            mixed = bits[start : start + LANES].astype(np.uint32)
            mixed ^= PLACES[: mixed.size] + np.uint32((self.elements + start) * PLACE_FACTOR % 2**32)
            for shift, factor in ROUNDS:
                mixed ^= mixed >> np.uint32(shift)
                mixed *= np.uint32(factor)
            mixed ^= mixed >> np.uint32(16)
            self.value = (self.value + int(mixed.sum(dtype=np.uint64))) % 2**32
        self.elements += bits.size


@jax.jit
def _array_digests(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _array_digest(x) for name, x in arrays.items()}


def _array_digest(x: jax.Array) -> jax.Array:
    """The sum modulo 2**32, whose order is free, of a hash of each element's bits and its place.

    The hash (MurmurHash3's finalizer) is one to one in the bits: a change of any one element always shows.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits ^ (place * jnp.uint32(PLACE_FACTOR))
    for shift, factor in ROUNDS:
        mixed = (mixed ^ (mixed >> jnp.uint32(shift))) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> jnp.uint32(16)), dtype=jnp.uint32)


def read_whole(where: str, read: Callable[[], T]) -> T:
    """What Orbax reads; all that it raises, of many kinds, is a DamagedError, but for lack of memory or of rights."""
    try:
        return read()
    except (InputError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        found = _first_line(error)
    with _unraisable_unheard():
        gc.collect()
    raise DamagedError(f"{where}: damaged or incomplete ({found}); an earlier checkpoint may be whole")


def _first_line(error: BaseException) -> str:
    """What went wrong first, without the specification that TensorStore adds."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return f"{type(error).__name__}: {error}".partition("\n")[0].partition(" [tensorstore_spec")[0][:ERROR_LENGTH]


@contextmanager
def _unraisable_unheard() -> Iterator[None]:
    """Orbax leaves its other reads pending when one fails, and each complains at length when it is collected."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()
