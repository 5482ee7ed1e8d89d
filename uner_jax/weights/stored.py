"""The arrays of a checkpoint of ours on disk, read and written a block at a time, beside Orbax.

Orbax writes and reads whole arrays, and ours are stacks of all layers. Its format is TensorStore's: the directory of
an item is a key-value store (OCDBT, or plain files) of zarr3 arrays under the names of the parameters. What is written
here is read by Orbax, and what Orbax writes is read here.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from uner_jax.weights.integrity import Digest, read_whole

# Chunks are not compressed: that would save a fifth and take ten times as long.
CHUNK_BYTES = 4 * 2**20

Block = tuple[slice, ...]


class StoredArray:
    """One array, and the digest of the blocks that were read or written of it, one behind the other."""

    def __init__(self, array: ts.TensorStore, where: str):
        self._array = array
        self._where = where
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype = array.dtype.numpy_dtype
        self._chunk: tuple[int, ...] = tuple(map(int, np.asarray(array.chunk_layout.read_chunk.shape)))
        self._digest = Digest()

    @property
    def layers_at_once(self) -> int:
        """How many of the first axis lie in one chunk, and so are read together."""
        return self._chunk[0]

    @property
    def chunks_fit(self) -> bool:
        """Whether no chunk is larger than the array: it would be memory that nobody needs."""
        return all(chunk <= size for chunk, size in zip(self._chunk, self.shape, strict=True))

    def blocks(self) -> Iterator[Block]:
        """Ranges of the first axis, or of the first two where a chunk has one of the first: in the array's order."""
        if len(self.shape) == 1 or self._chunk[0] > 1:
            for start in range(0, self.shape[0], self._chunk[0]):
                yield (slice(start, min(start + self._chunk[0], self.shape[0])),)
            return
        for first in range(self.shape[0]):
            yield from self.blocks_of(first)

    def blocks_of(self, layer: int) -> Iterator[Block]:
        """The blocks of one of the first axis, where a chunk has one of it."""
        for start in range(0, self.shape[1], self._chunk[1]):
            yield slice(layer, layer + 1), slice(start, min(start + self._chunk[1], self.shape[1]))

    def read(self, block: Block) -> np.ndarray:
        """The values of a block; DamagedError if they cannot be had."""
        values = read_whole(self._where, lambda: np.asarray(self._array[block].read().result()))
        self._digest.add(values)
        return values

    def write(self, block: Block, values: np.ndarray) -> None:
        """Write a block that `blocks` gave, in the array's dtype."""
        self._array[block].write(values).result()
        self._digest.add(values)

    @property
    def digest(self) -> int | None:
        """That of `integrity.digests_of`; None until all blocks are through."""
        return self._digest.value if self._digest.elements == math.prod(self.shape) else None


def open_array(item: Path, name: str) -> StoredArray:
    """An array of a checkpoint's item; DamagedError if it is not there."""
    kvstore = (
        {"driver": "ocdbt", "base": f"file://{item.absolute()}/", "path": f"{name}/"}
        if (item / "manifest.ocdbt").is_file()
        else {"driver": "file", "path": f"{item.absolute() / name}/"}
    )
    spec = {"driver": "zarr3", "kvstore": kvstore}
    return StoredArray(read_whole(str(item), lambda: ts.open(spec, read=True, context=_context()).result()), str(item))


def create_array(item: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, stacked: bool) -> StoredArray:
    """A new array in plain files; of a stack a chunk is rows of one layer, else of the whole."""
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{item.absolute() / name}/"},
        # Orbax takes a chunk that is not there for lost.
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape(shape, dtype, stacked)}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
    }
    return StoredArray(ts.open(spec, create=True, context=_context()).result(), str(item))


def chunk_shape(shape: tuple[int, ...], dtype: np.dtype, stacked: bool) -> tuple[int, ...]:
    """As many rows of one layer, or of an array that is no stack, as are not above CHUNK_BYTES."""
    rows = shape[1:] if stacked else shape
    fitting = CHUNK_BYTES // (math.prod(rows[1:]) * dtype.itemsize)
    return (1,) * stacked + (max(1, min(rows[0], fitting)), *rows[1:])


def _context() -> ts.Context:
    # nothing is read twice, and few chunks at a time: they are what memory is taken for.
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": 1},
            "file_io_concurrency": {"limit": 2},
            "file_io_sync": False,  # all files are synced when the directory is whole
        }
    )
