"""Buckets for tests: one in this process's memory, and an emulator of Cloud Storage on loopback."""

import contextlib
import sys

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from ssjax.files import places


class MemoryBucket(MemoryFileSystem):
    """gs:// in memory: no directory but in the names of objects, every write a put."""

    protocol = "gs"
    store = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


@contextlib.contextmanager
def memory_bucket():
    """Within, all that this process reads and writes as gs:// is in memory; gives the objects."""
    MemoryBucket.store.clear()
    fsspec.register_implementation("gs", MemoryBucket, clobber=True)
    places._store.cache_clear()
    try:
        yield MemoryBucket.store
    finally:
        sys.modules["fsspec.registry"]._registry.pop("gs")  # nothing public takes it out
        places._store.cache_clear()
