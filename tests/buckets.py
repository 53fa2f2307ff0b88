"""Buckets for tests: one in this process's memory, and an emulator of Cloud Storage on loopback."""

import contextlib
import logging
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


@contextlib.contextmanager
def emulator(bucket="bucket"):
    """An emulator of Cloud Storage on loopback; gives the environment that leads programs to it.

    TensorStore, which Orbax writes arrays with, and gcsfs, which all else goes through, each take
    its address from a variable of their own.
    """
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    server._api.daemon = True
    with server:
        address = f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind of bucket it is
            "GOOGLE_CLOUD_PROJECT": "none",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # or TensorStore asks this machine for one
        }
