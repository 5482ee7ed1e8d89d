"""The TFDS data set of tokenized conversations: one record a conversation, not yet packed.

`tfds.load(NAME, data_dir=DIR)` and `tfds.builder_from_directory` read what is built here.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from uner_jax.data.example import Example, parse_example, to_record
from uner_jax.data.shards import Shard, write_shards
from uner_jax.data.storage import as_path, local_directory
from uner_jax.data.tfrecord import TFRecordSource
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer

FIRST_VERSION = "1.0.0"
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
SPLIT = "train"
TOKENIZER_DIRECTORY = "tokenizer"
NAME = re.compile(r"[a-z][a-z0-9_]*")

# Writes the files that begin with this path (see `shard_path`), and says what is in them.
WriteShards = Callable[[Path], Sequence[Shard]]


class _Conversations(tfds.core.dataset_builder.FileReaderBuilder):
    """Tokenized conversations; the name and version of the data set are given by `assemble`."""

    pkg_dir_path = None

    def __init__(self, write: WriteShards, tokenizer: Tokenizer, metadata: dict[str, Any], **kwargs: Any):
        self._write = write
        self._tokenizer = tokenizer
        self._metadata = metadata
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        return self.dataset_info_from_configs(
            description="Tokenized question-and-answer conversations for open named-entity recognition.",
            features=tfds.features.FeaturesDict({"id": tfds.features.Text(), "tokens": ids, "loss_mask": ids}),
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        # at this point the directory is the temporary one: the tokenizer appears together with the records.
        directory = as_path(self.data_dir)
        with local_directory(directory / TOKENIZER_DIRECTORY) as local:
            self._tokenizer.save(local)
        shards = self._write(directory / f"{self.name}-{SPLIT}.tfrecord")
        split = tfds.core.SplitInfo(
            name=SPLIT,
            shard_lengths=[shard.conversations for shard in shards],
            num_bytes=sum(shard.size for shard in shards),
            filename_template=self._get_filename_template(SPLIT),
        )
        self.info.set_splits(tfds.core.splits.SplitDict([split]))


def build(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    data_dir: Path,
    name: str,
    metadata: dict[str, Any],
    version: str = FIRST_VERSION,
) -> Path:
    """Build the data set from examples and return its directory; it appears there when it is whole.

    The same examples, in any order, give the same bytes. Raises InputError if there are none, if TFDS does
    not take the name, and if a data set of that name and version is there already.
    """

    def write(prefix: Path) -> list[Shard]:
        shards = write_shards(prefix, map(to_record, examples), tokenizer.eos_id)
        if not any(shard.conversations for shard in shards):
            raise InputError(f"data set {name}: there are no conversations to build it from")
        return shards

    return assemble(write, tokenizer, data_dir, name, metadata, version)


def assemble(
    write: WriteShards, tokenizer: Tokenizer, data_dir: Path, name: str, metadata: dict[str, Any], version: str
) -> Path:
    """Let `write` make the record files, and put the tokenizer and TFDS's description beside them, or nothing.

    Returns the data set's directory. Raises InputError as `build` does for name and version.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"data set name {name!r}: expected small letters, digits and underscores, a letter first")
    directory = data_dir / name / version
    if directory.exists():
        raise InputError(f"{directory}: exists already; give another name or remove it")
    for left in directory.parent.glob(f"incomplete.*_{version}"):
        epath.Path(left).rmtree()  # TFDS's directory of a build that was killed
    with tfds.core.registered.skip_registration():
        attributes = {"name": name, "VERSION": tfds.core.Version(version), "__module__": __name__}
        builder = type("Conversations", (_Conversations,), attributes)(
            write=write, tokenizer=tokenizer, metadata=metadata, data_dir=str(data_dir), file_format="tfrecord"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloads
        builder.download_and_prepare()
    return directory


def versions(data_dir: Path, name: str) -> list[str]:
    """The versions of a data set that are there, oldest first."""
    paths = (data_dir / name).glob("*/dataset_info.json")
    found = [path.parent.name for path in paths if VERSION.fullmatch(path.parent.name)]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def dataset_directory(data_dir: Path, name: str) -> Path:
    """Where the data set lies: of `NAME:VERSION` that version, of `NAME` the newest, as TFDS has it."""
    name, _, version = name.partition(":")
    if not version:
        version = next(reversed(versions(data_dir, name)), FIRST_VERSION)
    return data_dir / name / version


def built_metadata(data_dir: Path, name: str) -> dict[str, Any] | None:
    """The metadata that a data set was built with; None if there is none of that name and version."""
    directory = dataset_directory(data_dir, name)
    if not (directory / "dataset_info.json").is_file():
        return None
    return dict(tfds.builder_from_directory(str(directory)).info.metadata)


def dataset_tokenizer(data_dir: Path, name: str) -> Tokenizer:
    """The tokenizer that a data set was built with."""
    return load_tokenizer(dataset_directory(data_dir, name) / TOKENIZER_DIRECTORY)


def open_examples(data_dir: Path, name: str) -> TFRecordSource:
    """The examples of a data set. Raises InputError if a TFRecord file is missing, damaged or cut off."""
    directory = dataset_directory(data_dir, name)
    if not (directory / "dataset_info.json").is_file():
        there = ", ".join(versions(data_dir, name.partition(":")[0]))
        offer = f"there is {there}" if there else "build it with python -m data_prep.tfrecords"
        raise InputError(f"{directory}: no data set here; {offer}")
    info = tfds.builder_from_directory(str(directory)).info
    split = info.splits.get(SPLIT)
    paths = [Path(path) for path in split.filepaths] if split else []
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        raise InputError(f"{directory}: no TFRecords found{': ' if missing else ''}{', '.join(missing)}")
    source = TFRecordSource(paths, parse_example)
    # a file that is cut off between two records, or empty, is whole by itself.
    for path, found, expected in zip(paths, source.shard_lengths, split.shard_lengths, strict=True):
        if found != expected:
            raise InputError(f"{path}: {found} records, but {expected} were written; build the data set again")
    return source
