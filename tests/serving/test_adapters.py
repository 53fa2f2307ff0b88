"""Many adapters over one base: each request becomes what its adapter alone makes of it."""

import dataclasses
import json
import random
import shutil
import threading

import numpy as np
import oracles
import pytest
import small_tokenizers
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from ssjax.config import AdaptationConfig, Config, DataConfig, DecodeConfig, StreamsConfig
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.decoding.drafters import PlainDrafter, Way
from ssjax.decoding.request import Request
from ssjax.decoding.sampling import Sampling
from ssjax.errors import UserError
from ssjax.models.lora import is_new
from ssjax.models.parameters import fingerprint, split
from ssjax.run import open_run
from ssjax.serving.adapters import AdapterInUse, UnknownAdapter, open_adapters
from ssjax.serving.app import AppLimits, make_app
from ssjax.serving.engine import Engine
from ssjax.serving.figures import Figures
from ssjax.serving.limits import EngineLimits
from ssjax.serving.service import Service
from ssjax.serving.ticket import Asked
from ssjax.weights.adapter import Addition, write_addition
from ssjax.weights.load import Trained, make_model

pytestmark = pytest.mark.stress  # an engine, and a decoder for each adapter

LIMITS = EngineLimits(
    num_slots=4,
    max_waiting=100,
    max_prompt_tokens=80,
    max_new_tokens=24,
    max_eos_ids=4,
    passes_per_round=2,
    prefill_tokens=512,
    prefill_piece=24,
    prefix_bytes=10**6,
)
STREAMS = StreamsConfig(num_streams=2, num_stream_layers=1, parent_rank=4, root_rank=4)
WITHOUT = StreamsConfig(num_streams=0, num_stream_layers=1)
# All three modes, ranks and targets of their own, and one that nothing drafts for.
ADAPTERS = {
    "gated": (STREAMS, AdaptationConfig("lossless", 2, 8.0, targets=("q_proj", "down_proj"))),
    "apart": (
        dataclasses.replace(STREAMS, parent_rank=0, root_rank=2, init_rank=3),
        AdaptationConfig("detached", 3, 6.0),
    ),
    "bare": (WITHOUT, AdaptationConfig("shared", 1, 2.0, targets=("v_proj", "gate_proj"))),
    "joint": (STREAMS, AdaptationConfig("shared", 2, 2.0)),
}
SETTINGS = (Sampling(), Sampling(0.8, top_k=7, top_p=0.9))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A base and adapters in directories."""

    root: object
    base: Trained

    def trained(self, name):
        """The base with one adapter."""
        streams, adaptation = ADAPTERS[name]
        config = dataclasses.replace(self.base.config, streams=streams, adaptation=adaptation)
        model = make_model(config, self.base.tokenizer)
        seed = 1 + list(ADAPTERS).index(name)
        leaves = split(oracles.random_params(model, seed), is_new)[0]
        return dataclasses.replace(self.base, config=config, trainable=leaves)

    def write(self, name, directory, **changes):
        trained = self.trained(name)
        config = dataclasses.replace(trained.config, **changes)
        trained.tokenizer.save(directory)
        digest = fingerprint(self.base.frozen)
        write_addition(directory, Addition(config, trained.trainable, digest), None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
    config = Config(
        model=dataclasses.replace(oracles.SMALL, vocab_size=tokenizer.vocab_size),
        streams=WITHOUT,
        data=DataConfig(task="pairs"),
        decode=DecodeConfig(num_nodes=4, max_new_tokens=24, prompt_buckets=(16, 96)),
    )
    params = oracles.random_params(make_model(config, tokenizer), 0, table_scale=0.5)
    root = tmp_path_factory.mktemp("adapters")
    bench = Bench(root, Trained(root, 0, config, tokenizer, {}, params, None))
    for name in ADAPTERS:
        bench.write(name, root / name)
    return bench


@pytest.fixture(scope="module")
def adapters(bench):
    """Two are there from the start."""
    given = {name: bench.root / name for name in ("gated", "apart")}
    adapters = open_adapters(bench.base, given, root=bench.root, max_adapters=3, changes={})
    for name, directory in given.items():
        adapters.add(adapters.open(name, directory, Sampling()))
    return adapters


@pytest.fixture(scope="module")
def engine(adapters):
    way = adapters.run.way({}, 4)
    engine = Engine(adapters.run.decoder, way, Sampling(), LIMITS, adapters=adapters)
    engine.start()
    return engine


@pytest.fixture(scope="module")
def alone(bench):
    """Tokens that `generate` gives with a model that has one adapter, or none."""
    runs = {}

    def decode(asked):
        name = asked.adapter.name if asked.adapter else None
        if name not in runs:
            trained = bench.trained(name) if name else bench.base
            runs[name] = open_run(trained, folded=False)
        run = runs[name]
        request = Request(
            [asked.prompt],
            asked.max_new_tokens,
            asked.sampling,
            asked.seed,
            batch_size=1,
            numbers=[asked.place],
        )
        way = run.way({}, 1) if run.config.streams.num_streams else Way(PlainDrafter(), True)
        [completion] = run.decoder.generate(request, way)
        return completion

    return decode


def asked_of(rng, engine, adapter):
    """Half of the prompts begin alike, whatever their adapters make of the beginning."""
    vocab_size = engine.decoder.model.config.vocab_size
    own = tuple(rng.randrange(vocab_size) for _ in range(rng.randint(1, 16)))
    return Asked(
        prompt=(*range(100, 140), *own) if rng.random() < 0.5 else own,
        max_new_tokens=rng.choice((1, 7, 24, 24)),
        sampling=rng.choice(SETTINGS),
        seed=rng.randrange(2**31),
        place=0,
        eos_ids=engine.decoder.eos_ids,
        adapter=adapter,
    )


def test_each_request_becomes_what_its_adapter_alone_makes_of_it(bench, engine, alone, compiled):
    """Of four adapters in three places and the base, in four slots, loaded while others run."""
    rng, adapters = random.Random(0), engine.adapters
    before, tickets = len(compiled), []

    def submit(count):
        known = [None, *adapters.named.values()]
        more = [asked_of(rng, engine, known[i % len(known)]) for i in range(count)]
        tickets.extend(engine.submit(each) for each in more)

    submit(6)
    engine.round()
    opened = adapters.open("bare", bench.root / "bare", engine.sampling)
    future = engine.load_adapter(opened)
    assert engine.num_running and not future.done()
    engine.round()
    bare = future.result(0)
    submit(12)
    refused = engine.unload_adapter("bare")
    engine.round()
    with pytest.raises(AdapterInUse, match="3 requests"):
        refused.result(0)
    opened = adapters.open("joint", bench.root / "joint", engine.sampling)
    refused = engine.load_adapter(opened)
    engine.round()
    with pytest.raises(UserError, match="3 adapters are loaded"):
        refused.result(0)
    while engine.round():
        pass
    gone, joint = engine.unload_adapter("bare"), engine.load_adapter(opened)
    engine.round()
    assert gone.result(0) is None and joint.result(0).place == bare.place
    with pytest.raises(UnknownAdapter):
        engine.submit(asked_of(rng, engine, bare))
    submit(12)
    while engine.round():
        pass
    # What a directory should hold is found out by tracing, without compiling anything.
    assert not [event for event in compiled[before:] if "backend_compile" in event]
    assert engine.prefixes.hits > 0
    names = {ticket.asked.adapter and ticket.asked.adapter.name for ticket in tickets}
    assert names == {None, *ADAPTERS}
    accepted = dict.fromkeys(names, 0)
    for ticket in tickets:
        found, expected = ticket.completion, alone(ticket.asked)
        assert found.tokens == expected.tokens
        name = ticket.asked.adapter and ticket.asked.adapter.name
        accepted[name] += sum(found.kept)
        if name == "gated":  # its ranks are those of the form, so drafts are the same, too
            assert found.runs == expected.runs
    assert accepted[None] == accepted["bare"] == 0 < accepted["gated"]


def test_what_cannot_be_served_is_refused_in_one_line(bench, adapters, tmp_path):
    there = adapters.named
    wrong = {
        "3 streams": {"streams": dataclasses.replace(STREAMS, num_streams=3)},
        "larger parent_rank": {"streams": dataclasses.replace(STREAMS, parent_rank=5)},
        "larger rank": {"adaptation": AdaptationConfig("lossless", 4, 8.0)},
        "parameter stream_layers": {
            "adaptation": AdaptationConfig("lossless", 1, 8.0, targets=("q_proj", "down_proj"))
        },
        "trained all weights": {"adaptation": AdaptationConfig()},
        "repetition_penalty": {
            "decode": dataclasses.replace(bench.base.config.decode, repetition_penalty=1.5)
        },
    }
    for number, (message, changes) in enumerate(wrong.items()):
        directory = tmp_path / str(number)
        bench.write("gated", directory, **changes)
        with pytest.raises(UserError, match=message) as caught:
            adapters.open("new", directory, Sampling())
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)

    def damaged(message, change):
        directory = tmp_path / message.replace(" ", "-")
        bench.write("gated", directory)
        change(directory)
        with pytest.raises(UserError, match=message) as caught:
            adapters.open("new", directory, Sampling())
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)

    def other_base(directory):
        values = json.loads((directory / "ssjax.json").read_text())
        values["base_fingerprint"] = "0" * 32
        (directory / "ssjax.json").write_text(json.dumps(values))

    def not_finite(directory):
        leaves = load_file(directory / "streams.safetensors")
        leaves["stream_embedding"] = leaves["stream_embedding"] * np.float32(np.nan)
        save_file(leaves, directory / "streams.safetensors")

    def cut(directory):
        path = directory / "streams.safetensors"
        path.write_bytes(path.read_bytes()[:100])

    damaged("other base weights", other_base)
    damaged("not a finite number", not_finite)
    damaged("damaged adapter", cut)
    damaged("is no directory", shutil.rmtree)
    assert adapters.named == there


def test_adapters_over_http(bench, engine, alone):
    """Last in this file: the engine runs in a thread and is stopped."""
    run = engine.adapters.run
    service = Service(run, engine, "base", run.config.decode, raw=True, request_seconds=0.0)
    app = make_app(
        service, Figures(engine, "base"), AppLimits(max_body_bytes=10_000, max_choices=4)
    )
    client = TestClient(app)
    thread = threading.Thread(target=engine.run)
    thread.start()

    def post(path, **body):
        answer = client.post(f"/v1/{path}", json=body)
        return answer.status_code, answer.text

    def models():
        data = client.get("/v1/models").json()["data"]
        return {each["id"]: (each["root"], each["parent"]) for each in data}

    try:
        for name in list(engine.adapters.named):
            assert post("unload_lora_adapter", lora_name=name)[0] == 200
        assert models() == {"base": ("base", None)}
        assert post("completions", model="gated", prompt="ab")[0] == 404
        for path in ("../..", "/etc", ".", "gated/../../x", "a\0b"):
            status, text = post("load_lora_adapter", lora_name="new", lora_path=path)
            assert status == 400 and "--adapter_root" in text
        status, text = post("load_lora_adapter", lora_name="base", lora_path="gated")
        assert status == 400 and "name of the base" in text
        status, text = post("load_lora_adapter", lora_name="new", lora_path="missing")
        assert status == 400 and str(bench.root) not in text
        assert json.loads(text)["error"]["type"] == "InvalidUserInput"
        assert post("load_lora_adapter", lora_name="new")[0] == 400
        status, text = post("load_lora_adapter", lora_name="mine", lora_path="gated")
        assert (status, text) == (200, "Success: LoRA adapter 'mine' added successfully.")
        status, text = post("load_lora_adapter", lora_name="mine", lora_path="gated")
        assert status == 400 and "already been loaded" in text
        assert models() == {"base": ("base", None), "mine": ("gated", "base")}
        prompt = run.encode_prompt("two tickets", raw=True)
        answer = client.post("/v1/completions", json={"model": "mine", "prompt": prompt}).json()
        assert answer["model"] == "mine"
        expected = open_run(bench.trained("gated"), folded=False).generate(
            [tuple(prompt)], drafter="plain"
        )
        assert answer["choices"][0]["text"] == expected[0].text
        assert answer["metrics"]["speculative_decoding"]["num_spec_tokens"] == 2
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        again = {"model": "mine", "prompt": [*range(100, 140)], "max_tokens": 1}
        for known in (0, 32):
            usage = client.post("/v1/completions", json=again).json()["usage"]
            assert usage["prompt_tokens_details"] == {"cached_tokens": known}
        hits = [x for x in client.get("/metrics").text.splitlines() if "cache_hits_total{" in x]
        assert hits[0].startswith("vllm:prefix_cache_hits_total{")
        assert float(hits[0].split()[-1]) == engine.prefixes.hits
        answer = client.post("/v1/completions", json={"prompt": prompt}).json()
        assert answer["model"] == "base"
        assert answer["metrics"]["speculative_decoding"] is None
        status, text = post("unload_lora_adapter", lora_name="other")
        assert status == 404 and json.loads(text)["error"]["type"] == "NotFoundError"
        status, text = post("unload_lora_adapter", lora_name="mine")
        assert (status, text) == (200, "Success: LoRA adapter 'mine' removed successfully.")
    finally:
        engine.stop()
        thread.join(60)
