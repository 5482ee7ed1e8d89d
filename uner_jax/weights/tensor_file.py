"""Files of safetensors, read and written one tensor at a time: a header of names, and the bytes behind it.

The format (huggingface/safetensors): eight bytes that give the header's length, a JSON object of dtype, shape and
place of each tensor, then the tensors without gaps. The header is checked whole before anything is read: a file
from anywhere cannot ask for more memory than its own size, and no code is in it.
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from uner_jax.records import InputError

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
SIZE = struct.Struct("<Q")
# the format's own limit: LLaMA 70B needs 100 KB.
LONGEST_HEADER = 100_000_000
ALIGNMENT = 8
# elements that are converted at a time.
BLOCK = 2**20


class Entry(NamedTuple):
    """Where a tensor lies: its dtype and shape, and its bytes `[start, end)` from the beginning of the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """The tensors of a file. Raises InputError if it is missing or not whole, at any place of it."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():  # a pipe would wait for ever
            raise InputError(f"{path}: No such file, or not a regular one; get the whole directory again")
        try:
            self.entries = _entries(*_read_header(path))
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not readable as safetensors: {error}; get the file again") from error

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own dtype (bfloat16 as ml_dtypes')."""
        entry = self.entries[name]
        tensor = np.empty(entry.shape, entry.dtype)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise InputError(f"{self.path}: not readable as safetensors: it was cut while it was read")
        return tensor


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the tensors begin, and where the file ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(SIZE.size)
        if len(start) < SIZE.size:
            raise ValueError(f"it has {size} bytes")
        (length,) = SIZE.unpack(start)
        if length > min(LONGEST_HEADER, size - SIZE.size):
            raise ValueError(f"its first bytes ask for a header of {length:,} bytes, in a file of {size:,}")
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, SIZE.size + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _entries(header: dict[str, Any], begin: int, end: int) -> dict[str, Entry]:
    """The entries, whose bytes must be all those behind the header, each once."""
    entries = {name: _entry(name, fields, begin) for name, fields in header.items() if name != "__metadata__"}
    at = begin
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != at:
            raise ValueError(f"tensor {name!r} begins at byte {entry.start:,}, where {at:,} was expected")
        at = entry.end
    if at != end:
        raise ValueError(f"its tensors end at byte {at:,}, and the file at {end:,}")
    return entries


def _entry(name: str, fields: Any, begin: int) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r:.60} should have dtype, shape and data_offsets")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"shape and data_offsets of tensor {name!r:.60} should be whole numbers")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r:.60} is of {fields['dtype']!r:.60}; supported are {', '.join(DTYPES)}")
    dtype = np.dtype(DTYPES[fields["dtype"]])
    start, end = (begin + offset for offset in offsets)
    if math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"tensor {name!r:.60} of shape {shape!r:.60} does not have {end - start:,} bytes")
    return Entry(dtype, tuple(shape), start, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**63 for count in value)


def _bytes(tensor: np.ndarray) -> memoryview:
    return tensor.reshape(-1).view(np.uint8).data


def write_tensor_file(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype, tensors: Iterator[np.ndarray]
) -> None:
    """Write the tensors, in the order of their shapes by name, in that dtype; one of them is held at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(SIZE.pack(len(text)) + text)
        for name, shape in shapes.items():
            _write(file, next(tensors), name, shape, dtype)


def _write(file: BinaryIO, tensor: np.ndarray, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if tensor.shape != shape:
        raise AssertionError(f"{name} is {tensor.shape}, and the header says {shape}")
    flat = np.ascontiguousarray(tensor).reshape(-1)
    for start in range(0, flat.size, BLOCK):
        file.write(_bytes(flat[start : start + BLOCK].astype(dtype, copy=False)))
