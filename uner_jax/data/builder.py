"""The TFDS data set of tokenized conversations: one record a conversation, not yet packed.

`tfds.load(NAME, data_dir=DIR)` and `tfds.builder_from_directory` read what is built here.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from uner_jax.data.tfrecord import TFRecordSource, write_records
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer

VERSION = "1.0.0"
SPLIT = "train"
TOKENIZER_DIRECTORY = "tokenizer"
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Example(NamedTuple):
    """A tokenized conversation: int32 ids, and 1 where a token is in the loss."""

    id: str
    tokens: Sequence[int] | np.ndarray
    loss_mask: Sequence[int] | np.ndarray


class _Writer(tfds.core.writer.ExampleWriter):
    """Writes shards without TensorFlow, which TFDS would need for this alone."""

    def write(self, path: Any, examples: Any) -> None:
        write_records(Path(path), (_canonical(record) for _, record in examples))


def _canonical(record: bytes) -> bytes:
    """The same example in the same bytes: protobuf maps have no order of their own."""
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


class _Conversations(tfds.core.GeneratorBasedBuilder):
    """Tokenized conversations; the name of the data set is given by `build`."""

    VERSION = tfds.core.Version(VERSION)
    pkg_dir_path = None

    def __init__(self, examples: Iterable[Example], tokenizer: Tokenizer, metadata: dict[str, Any], **kwargs: Any):
        self._examples = examples
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

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # at this point the directory is the temporary one: the tokenizer appears together with the records.
        self._tokenizer.save(Path(self.data_dir) / TOKENIZER_DIRECTORY)
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        # the key is the place in the input, so that an id that stands twice loses nothing.
        number = -1
        for number, example in enumerate(self._examples):
            yield (
                number,
                {
                    "id": example.id,
                    "tokens": np.array(example.tokens, np.int32),
                    "loss_mask": np.array(example.loss_mask, np.int32),
                },
            )
        if number < 0:
            raise InputError(f"data set {self.name}: there are no conversations to build it from")

    def _example_writer(self) -> _Writer:
        return _Writer(self.info.file_format)


def dataset_directory(data_dir: Path, name: str) -> Path:
    """Where the data set of that name lies."""
    return data_dir / name / VERSION


def build(
    examples: Iterable[Example], tokenizer: Tokenizer, data_dir: Path, name: str, metadata: dict[str, Any]
) -> Path:
    """Build the data set and return its directory; it appears there when it is whole.

    The same examples give the same bytes. Raises InputError if there are none, if TFDS does not take the
    name, and if a data set of that name is there already.
    """
    directory = dataset_directory(data_dir, name)
    if not NAME.fullmatch(name):
        raise InputError(f"data set name {name!r}: expected small letters, digits and underscores, a letter first")
    if directory.exists():
        raise InputError(f"{directory}: exists already; give another name or remove it")
    with tfds.core.registered.skip_registration():
        builder_class = type("Conversations", (_Conversations,), {"name": name, "__module__": __name__})
        builder = builder_class(
            examples=examples, tokenizer=tokenizer, metadata=metadata, data_dir=str(data_dir), file_format="tfrecord"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloads
        builder.download_and_prepare()
    return directory


def built_metadata(data_dir: Path, name: str) -> dict[str, Any] | None:
    """The metadata that a data set was built with; None if there is none of that name."""
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
        raise InputError(f"{directory}: no data set here; build it with python -m data_prep.tfrecords")
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


def parse_example(record: bytes) -> Example:
    """An example from a record's bytes."""
    features = tf_example_pb2.Example.FromString(record).features.feature
    return Example(
        features["id"].bytes_list.value[0].decode("utf-8"),
        np.array(features["tokens"].int64_list.value, np.int32),
        np.array(features["loss_mask"].int64_list.value, np.int32),
    )
