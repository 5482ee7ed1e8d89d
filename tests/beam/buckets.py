"""A directory that plays an object store, for the tests of pipelines."""

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class Bucket(DirFileSystem):
    """Its addresses begin with gs://."""

    protocol = "gs"
    root = ""

    def __init__(self, **options):
        super().__init__(path=self.root, fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("gs://")
