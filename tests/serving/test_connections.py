"""Heads that are too large or too slow, bodies that never end, names of other hosts."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from ssjax.serving.guard import HostGuard, allowed_hosts
from ssjax.serving.server import Patience, make_config

HEAD = b"POST /length HTTP/1.1\r\nHost: localhost\r\n"


def make_app():
    app = FastAPI()

    @app.post("/length")
    async def _(request: Request) -> int:
        return len(await request.body())

    return app


@contextlib.contextmanager
def serving(receive_seconds):
    """The port of a server."""
    config = make_config(make_app(), Patience(2000, receive_seconds), drain_seconds=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def patient():
    with serving(600) as port:
        yield port


@pytest.fixture(scope="module")
def impatient():
    with serving(0.2) as port:
        yield port


def answer_to(port, *parts, pause=0.0):
    """What comes back until the server hangs up."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for part in parts:
            with contextlib.suppress(OSError):  # it has hung up already
                client.sendall(part)
            time.sleep(pause)
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(4096):
                found += more
    return found


def test_requests_may_come_in_pieces(patient):
    parts = HEAD[:10], HEAD[10:] + b"Connection: close\r\nContent-Length: 5\r\n\r\nab", b"cde"
    found = answer_to(patient, *parts, pause=0.01)
    assert found.startswith(b"HTTP/1.1 200") and found.endswith(b"\r\n\r\n5")


@pytest.mark.parametrize(
    "begun", [b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\nab"], ids=["nothing", "head", "body"]
)
def test_requests_that_do_not_come_are_not_waited_for(impatient, begun):
    assert not answer_to(impatient, begun).startswith(b"HTTP/1.1 200")


def test_who_drips_is_not_waited_for(impatient):
    """Every byte in time, but not the whole."""
    drops = [bytes([byte]) for byte in HEAD]
    assert answer_to(impatient, *drops, pause=0.02) == b""


def test_a_large_head_is_refused(patient):
    fits, large = (b"X-Much: " + b"x" * size + b"\r\n" for size in (1000, 4000))
    end = b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    assert answer_to(patient, HEAD + fits + end).startswith(b"HTTP/1.1 200")
    assert answer_to(patient, HEAD + large + end).startswith(b"HTTP/1.1 431")
    # Refused before it has ended, too.
    assert not answer_to(patient, HEAD, *[large] * 40).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("address", "names", "host", "status"),
    [
        ("127.0.0.1", None, "localhost:8000", 200),
        ("127.0.0.1", None, "127.0.0.1:8000", 200),
        ("::1", None, "[::1]:8000", 200),
        ("127.0.0.1", None, "LocalHost", 200),
        ("127.0.0.1", None, "elsewhere.example", 421),
        ("127.0.0.1", None, "localhost.elsewhere.example:8000", 421),
        ("127.0.0.1", ["Models.Example"], "models.example", 200),
        ("0.0.0.0", ["models.example"], "other.example", 421),
        ("0.0.0.0", None, "other.example", 200),
    ],
)
def test_only_known_hosts_are_answered_for(address, names, host, status):
    app, hosts = make_app(), allowed_hosts(address, names)
    if hosts is not None:
        app.add_middleware(HostGuard, hosts=hosts)
    with contextlib.closing(TestClient(app)) as client:
        found = client.post("/length", headers={"Host": host})
        assert found.status_code == status
        if status != 200:
            assert found.json()["error"]["type"] == "invalid_request_error"
            assert "--allowed_hosts" in found.json()["error"]["message"]
