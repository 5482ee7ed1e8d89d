"""What the tests of pipelines share."""

from pathlib import Path

import fsspec
import pytest
from buckets import Bucket


def pytest_configure(config):
    # Of the older versions that Beam asks for: protobuf says the first to TFDS when that reads a description of
    # features, sentencepiece's extension the second when it is loaded, before any test, and crashes at the end if it
    # may not.
    for message in (r"label\(\) is deprecated", r"builtin type \w+ has no __module__ attribute"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """The directory of gs://bucket."""
    monkeypatch.setattr(Bucket, "root", str(tmp_path / "store"))
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    return tmp_path / "store" / "bucket"
