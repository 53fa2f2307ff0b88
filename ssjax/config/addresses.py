"""Addresses of object stores, as they stand where a path may stand."""

# What reads each kind, and the extra of this package that brings it.
CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def scheme(place: str) -> str:
    """What stands before :// in an address; empty: a path of the file system."""
    before, found, _ = place.partition("://")
    return before if found else ""


def is_bucket(place: str) -> bool:
    """Whether a place is an address of an object store that we know."""
    return scheme(place) in CLIENTS
