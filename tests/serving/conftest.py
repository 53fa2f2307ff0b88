"""A tiny chat model, served on a loopback port by this process."""

import contextlib
import dataclasses
import socket
import threading
import time

import jax
import oracles
import pytest
import small_tokenizers
import uvicorn

from ssjax.config import Config, DataConfig, DecodeConfig, StreamsConfig
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.decoding.sampling import make_sampling
from ssjax.models.transformer import Transformer, init_params
from ssjax.run import open_run
from ssjax.serving.app import AppLimits, make_app
from ssjax.serving.engine import Engine, EngineLimits
from ssjax.serving.figures import Figures
from ssjax.serving.service import Service
from ssjax.weights.load import Trained

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
def run(tmp_path_factory):
    """A random model with streams that answers chats."""
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
    model = dataclasses.replace(oracles.SMALL, vocab_size=tokenizer.vocab_size)
    config = Config(
        model=model,
        streams=StreamsConfig(num_streams=2, num_stream_layers=1),
        data=DataConfig(task="chat"),
        decode=DecodeConfig(num_nodes=4, max_new_tokens=24, prompt_buckets=(64,)),
    )
    params = jax.jit(lambda: init_params(Transformer(model, config.streams, scan=True), 0))()
    directory = tmp_path_factory.mktemp("secret-place")
    return open_run(Trained(directory, 5, config, tokenizer, params, {}, None))


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
def serving(run, api_key=None, request_seconds=0.0, started=True):
    """A server in threads of this process, until the block ends; its engine started or not."""
    decode = run.config.decode
    engine = Engine(run.decoder, run.way({}, 3), make_sampling(decode), LIMITS)
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
