"""Buckets for tests: one in this process's memory, and an emulator of Cloud Storage on loopback."""

import contextlib
import logging
import sys
from http import HTTPStatus

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


def _with_generations(server, objects):
    """Gives the emulator what TensorStore cannot do without.

    A database of Orbax writes its manifest on condition that it is the one that was read. The
    emulator names no generation with what is read ("Malformed StorageGeneration" in every second
    save, gcp-storage-emulator 2026.7.19), and looks at no condition.
    """
    download, insert = objects.download, objects.insert

    def generation(request, storage, name):
        found = storage.objects.get(request.params["bucket_name"], {}).get(name)
        return "0" if found is None else found["generation"]

    def asked(request, condition):
        return request.query.get(condition, [None])[0]

    def read(request, response, storage, *_, **__):
        now = generation(request, storage, request.params["object_id"])
        if now != "0" and asked(request, "ifGenerationNotMatch") == now:
            response.status = HTTPStatus.NOT_MODIFIED
            return
        download(request, response, storage)
        response["x-goog-generation"] = now

    def write(request, response, storage, *_, **__):
        wanted, name = asked(request, "ifGenerationMatch"), asked(request, "name")
        if wanted is not None and name and wanted != generation(request, storage, name):
            request.data  # noqa: B018, what is not read would be taken for the next request
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        insert(request, response, storage)

    objects.download, objects.insert = read, write
    changed = {download: read, insert: write}
    for _, handlers in server.HANDLERS:
        handlers.update({method: changed.get(old, old) for method, old in handlers.items()})


@contextlib.contextmanager
def emulator(bucket="bucket"):
    """An emulator of Cloud Storage on loopback; gives the environment that leads programs to it.

    TensorStore, which Orbax writes arrays with, and gcsfs, which all else goes through, each take
    its address from a variable of their own.
    """
    import gcsfs
    from gcp_storage_emulator import server as server_lib
    from gcp_storage_emulator.handlers import objects

    if objects.download.__module__ != __name__:
        _with_generations(server_lib, objects)
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = server_lib.create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    server._api.daemon = True
    gcsfs.GCSFileSystem.clear_instance_cache()  # of another emulator
    places._store.cache_clear()
    with server:
        address = f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind of bucket it is
            "GOOGLE_CLOUD_PROJECT": "none",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # or TensorStore asks this machine for one
        }
