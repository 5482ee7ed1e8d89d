"""A tokenized conversation, and the bytes of its record: a `tf.train.Example`, as TFDS reads it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2


class Example(NamedTuple):
    """A tokenized conversation: int32 ids, and 1 where a token is in the loss."""

    id: str
    tokens: Sequence[int] | np.ndarray
    loss_mask: Sequence[int] | np.ndarray


def to_record(example: Example) -> bytes:
    """The record of an example, the same bytes each time: protobuf maps have no order of their own."""
    message = tf_example_pb2.Example()
    features = message.features.feature
    features["id"].bytes_list.value.append(example.id.encode("utf-8"))
    features["tokens"].int64_list.value.extend(example.tokens)
    features["loss_mask"].int64_list.value.extend(example.loss_mask)
    return message.SerializeToString(deterministic=True)


def parse_example(record: bytes) -> Example:
    """An example from a record's bytes."""
    features = tf_example_pb2.Example.FromString(record).features.feature
    return Example(
        features["id"].bytes_list.value[0].decode("utf-8"),
        np.array(features["tokens"].int64_list.value, np.int32),
        np.array(features["loss_mask"].int64_list.value, np.int32),
    )
