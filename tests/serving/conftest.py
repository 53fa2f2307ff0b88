"""A tiny chat model, served on a loopback port by this process."""

import contextlib
import dataclasses
import socket
import threading
import time

import jax
import numpy as np
import pytest
import uvicorn
from chat_run import open_chat_run

from ssjax.decoding.sampling import make_sampling
from ssjax.serving.app import AppLimits, make_app
from ssjax.serving.engine import Engine
from ssjax.serving.extras import NO_EXTRAS
from ssjax.serving.figures import Figures
from ssjax.serving.limits import EngineLimits
from ssjax.serving.service import Service

LIMITS = EngineLimits(
    num_slots=3,
    max_waiting=4,
    max_prompt_tokens=64,
    max_new_tokens=48,
    max_eos_ids=4,
    passes_per_round=2,
    prefill_tokens=64,
)


@pytest.fixture(scope="session")
def compiled():
    """Names of the events of compilations since the start of the tests."""
    events = []

    def listen(event, seconds, **_):
        if "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert events, "a compilation would be seen"
    return events


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A random model with streams that answers chats."""
    return open_chat_run(tmp_path_factory.mktemp("secret-place"), prompt_buckets=(64,))


@dataclasses.dataclass(frozen=True)
class Served:
    """A server that answers."""

    url: str
    service: Service

    @property
    def engine(self):
        return self.service.engine

    def wait_idle(self):
        """Until no request is left; a slot that is never given back fails."""
        end = time.monotonic() + 60
        while self.engine.num_running or self.engine.num_waiting:
            assert time.monotonic() < end, "a slot has leaked"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(run, api_key=None, request_seconds=0.0, started=True, extras=NO_EXTRAS):
    """A server in threads of this process, until the block ends; its engine started or not."""
    decode = run.config.decode
    engine = Engine(run.decoder, run.way({}, 3), make_sampling(decode), LIMITS, extras=extras)
    service = Service(run, engine, "tiny", decode, raw=False, request_seconds=request_seconds)
    figures = Figures(engine, "tiny")
    engine.on_end = figures.observe
    app = make_app(
        service, figures, AppLimits(max_body_bytes=10_000, max_choices=4), api_key=api_key
    )
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    threads = [threading.Thread(target=server.run, args=([listening],))]
    if started:
        engine.start()
        threads.append(threading.Thread(target=engine.run))
    for thread in threads:
        thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        engine.stop()
        for thread in threads:
            thread.join(60)
        listening.close()


@pytest.fixture(scope="session")
def serve(run):
    """To serve the model in another way than `served` does."""
    return lambda **how: serving(run, **how)


@pytest.fixture(scope="session")
def served(run):
    """The model, served."""
    with serving(run) as found:
        yield found
