"""The head of a GGUF file, llama.cpp's format: its fields and where its tensors lie.

A count or a length is believed only where the file has the bytes for it: what a damaged or hostile file claims
costs neither memory nor time beyond its own size.
"""

import dataclasses
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.records import InputError

VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
ALIGNMENT = 32  # bytes, where the field general.alignment does not say otherwise
# The types of a field by number: scalars as numpy names them, little-endian, then text and lists.
SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
# The fewest bytes that one of them takes: by so much is a count bounded.
SMALLEST_STRING = 8
SMALLEST_FIELD = SMALLEST_STRING + 4 + 1
SMALLEST_TENSOR = SMALLEST_STRING + 4 + 8 + 4 + 8


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: its type by llama.cpp's number, its shape, slowest axis first, and its first byte."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class GGUFHead:
    """The fields by name (numbers, texts, lists of texts, arrays of numbers) and the tensors by name."""

    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf_head(path: str | os.PathLike) -> GGUFHead:
    """Read the head of a GGUF file of version 2 or 3. Raises InputError if it is damaged, or anything else."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(len(_MAGIC))
            if head != _MAGIC:
                raise _FormatError(f"GGUF magic invalid: it begins with {head!r}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data).head()
    except (_FormatError, OSError) as error:
        raise InputError(f"{path}: not readable as GGUF: {error}") from error


_MAGIC = b"GGUF"


class _FormatError(ValueError):
    pass


class _Cursor:
    """Reads on from a place in the file; nothing is read behind its end."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self._place = len(_MAGIC)

    def head(self) -> GGUFHead:
        """All of it."""
        version = self._number("<I")
        if version not in VERSIONS:
            raise _FormatError(f"it is of version {version}; expected one of {VERSIONS}, little-endian")
        tensor_count = self._count("tensors", SMALLEST_TENSOR)
        field_count = self._count("fields", SMALLEST_FIELD)
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            name = self._string("a field's name")
            if name in fields:
                raise _FormatError(f"the field {name!r} stands there twice")
            fields[name] = self._value(name, self._number("<I"))
        infos = [self._tensor() for _ in range(tensor_count)]
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _FormatError(f"general.alignment must be a power of two, found {alignment!r}")
        base = -(-self._place // alignment) * alignment
        tensors = {tensor.name: dataclasses.replace(tensor, start=base + tensor.start) for tensor in infos}
        if len(tensors) != len(infos):
            raise _FormatError("two tensors have the same name")
        return GGUFHead(fields, tensors)

    def _tensor(self) -> GGUFTensor:
        """A tensor, its start still counted from the first byte behind the head."""
        name = self._string("a tensor's name")
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _FormatError(f"tensor {name!r} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        if 0 in shape:
            raise _FormatError(f"tensor {name!r} is empty, of shape {shape[::-1]}")
        return GGUFTensor(name, self._number("<I"), shape[::-1], self._number("<Q"))

    def _value(self, name: str, kind: int) -> Any:
        if kind == STRING:
            return self._string(name)
        if kind == ARRAY:
            return self._array(name, self._number("<I"))
        return self._scalars(name, kind, 1).item()

    def _array(self, name: str, kind: int) -> list[str] | np.ndarray:
        if kind == STRING:
            return [self._string(name) for _ in range(self._count(name, SMALLEST_STRING))]
        return self._scalars(name, kind, self._number("<Q"))

    def _scalars(self, name: str, kind: int, count: int) -> np.ndarray:
        if kind not in SCALARS:
            raise _FormatError(f"the field {name!r} is of type {kind}, which is not supported")
        dtype = np.dtype(SCALARS[kind])
        # as bytes first: a bool may be any byte in the file, and only 0 and 1 in numpy.
        raw = self._take(count * dtype.itemsize, name)
        return np.frombuffer(raw, "u1") != 0 if dtype.kind == "b" else np.frombuffer(raw, dtype)

    def _string(self, what: str) -> str:
        try:
            return self._take(self._number("<Q"), what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _FormatError(f"{what} is no UTF-8: {error}") from error

    def _count(self, what: str, smallest: int) -> int:
        """A number of items of at least so many bytes each."""
        count = self._number("<Q")
        if count * smallest > len(self._data) - self._place:
            raise _FormatError(f"it claims {count} items of {what}, more than the file has room for")
        return count

    def _number(self, form: str) -> int:
        (number,) = struct.unpack(form, self._take(struct.calcsize(form), "a number"))
        return number

    def _take(self, size: int, what: str) -> bytes:
        end = self._place + size
        if end > len(self._data):
            raise _FormatError(f"{what} ends at byte {end}, the file at {len(self._data)}")
        taken = self._data[self._place : end]
        self._place = end
        return taken
