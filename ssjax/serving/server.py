"""The server as a process: its threads, its signals, its end."""

import dataclasses
import functools
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from ssjax.errors import UserError
from ssjax.messages import say
from ssjax.serving.connection import Connection
from ssjax.serving.engine import Engine
from ssjax.serving.guard import HeadGuard


@dataclasses.dataclass(frozen=True)
class Address:
    """Where clients find the server."""

    host: str
    port: int  # 0: a free one


@dataclasses.dataclass(frozen=True)
class Patience:
    """With clients that say much or slowly."""

    max_head_bytes: int  # of a request: its line and its headers
    receive_seconds: float  # for a request to come, head and body


def serve(
    app: FastAPI,
    engine: Engine,
    address: Address,
    patience: Patience,
    *,
    drain_seconds: int,
    on_listening: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted.

    Requests are accepted by this thread, and the engine runs in another. The server listens before
    the engine has compiled its programs; until then /ready says so.

    Args:
      app: of `make_app`.
      engine: of its service, not started.
      address: where to listen.
      patience: with clients.
      drain_seconds: after a signal, until answers that are not finished are cut.
      on_listening: called with the URL as soon as the address is taken.

    Raises:
      UserError: the engine cannot start, or the address cannot be listened on.
    """
    listening = _listen(address)
    server = uvicorn.Server(make_config(app, patience, drain_seconds))

    def run_engine() -> None:
        try:
            engine.start()
            say("ready")
            engine.run()
        except BaseException as error:
            engine.problem = engine.problem or error
            server.should_exit = True

    # Uvicorn stops at a signal and then raises it again for whoever was there before it.
    previous = {
        each: signal.signal(each, lambda *_: None) for each in uvicorn.server.HANDLED_SIGNALS
    }
    thread = threading.Thread(target=run_engine, name="engine", daemon=True)
    try:
        host, port = listening.getsockname()[:2]
        on_listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        thread.start()
        server.run(sockets=[listening])
    finally:
        engine.stop()
        thread.join(timeout=drain_seconds)
        listening.close()
        for each, handler in previous.items():
            signal.signal(each, handler)
    if engine.problem is not None:
        raise engine.problem


def make_config(app: FastAPI, patience: Patience, drain_seconds: int) -> uvicorn.Config:
    """What uvicorn is told; arguments as of `serve`."""
    return uvicorn.Config(
        HeadGuard(app, patience.max_head_bytes),
        http=functools.partial(Connection, receive_seconds=patience.receive_seconds),
        ws="none",
        h11_max_incomplete_event_size=patience.max_head_bytes,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=drain_seconds,
    )


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on {address.host}, port {address.port}: {error.strerror or error}; "
            "give another --host or --port"
        ) from None
