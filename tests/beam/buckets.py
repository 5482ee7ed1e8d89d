"""A directory that plays an object store, for the tests of pipelines."""

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class Bucket(DirFileSystem):
    """Its addresses begin with gs://; `root` is each test's own, though etils keeps one Bucket for all."""

    protocol = "gs"
    root = ""

    def __init__(self, **options):
        super().__init__(path=self.root, fs=LocalFileSystem(auto_mkdir=True))

    @property
    def path(self) -> str:
        return self.root

    @path.setter
    def path(self, path: str) -> None:
        pass

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("gs://")
