"""Distillation as a user does it: killed again and again, then trained on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import oracles
import pytest
import verb_server

from ssjax.config import ModelConfig
from ssjax.data import sample
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.weights import huggingface
from ssjax.weights.identity import identity_of
from ssjax.weights.load import load_trained

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
MODEL = ModelConfig(
    vocab_size=512,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
)
pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with a random base whose greedy answers are ordinary text."""
    directory = tmp_path_factory.mktemp("world")
    records = sample.generate({"train": 400}, 0)["train"]
    train_tokenizer([r["dialogue"] for r in records], 512, symbols=()).save(directory / "base")
    model = oracles.make_model(num_streams=0, num_stream_layers=1, **vars(MODEL))
    params = oracles.random_params(model, seed=1, table_scale=0.4)
    description = huggingface.llama_config_json(MODEL)
    huggingface.write_params(directory / "base", MODEL, params, description)
    return directory


def experiment(world):
    return [
        f"--config={ROOT / 'experiments' / 'dialogsum.py'}:smoke",
        f"--config.data.prepared_dir={world / 'prepared'}",
        "--config.data.max_target_length=4",
        "--config.data.max_prompt_length=24",
    ]


def arguments(world, target, *more):
    asked = ["--num_records=200", "--batch_size=8", "--splits=train,validation", "--seed=5"]
    return [f"--workdir={world / 'base'}", f"--target={target}", *experiment(world), *asked, *more]


def call(verb, *arguments):
    ended = verb_server.server(**ENVIRONMENT).call(verb, arguments)
    assert ended.returncode == 0, ended.stderr
    return ended


def start(world, target, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "ssjax.distill", *arguments(world, target, *more)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def killed_after(world, target, num_batches):
    """Starts the verb and kills it once so many batches more are on disk; whether it was alive."""
    parts = [target / f"{split}.part" for split in ("train", "validation")]

    def batches():
        return sum(part.read_bytes().count(b"\n") for part in parts if part.exists())

    wanted = batches() + num_batches
    with start(world, target) as process:
        while process.poll() is None and batches() < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def test_killed_distillation_is_that_of_peace_and_trains(world, tmp_path):
    peace, killed = tmp_path / "peace", tmp_path / "killed"
    told = call("distill", *arguments(world, peace, f"--json={tmp_path / 'about.json'}"))
    assert told.stdout.startswith("train: ") and "\nvalidation: " in told.stdout
    about = json.loads((peace / "distilled.json").read_text())
    assert json.loads((tmp_path / "about.json").read_text()) == about
    assert about["asked"]["weights"] == identity_of(load_trained(world / "base"))
    assert about["splits"]["train"]["answers"] > 20

    assert [killed_after(world, killed, count) for count in (1, 3, 6)] == [True] * 3
    assert "going on after" in call("distill", *arguments(world, killed)).stderr
    names = {path.name for path in peace.iterdir()}
    assert names == {"distilled.json", "lock", *(f"{s}.jsonl" for s in sample.SPLIT_SIZES)}
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in peace.iterdir()
    }
    assert "is finished already" in call("distill", *arguments(world, killed)).stderr

    train = [
        *experiment(world),
        f"--config.model.pretrained={world / 'base'}",
        "--config.adaptation.mode=lossless",
        "--config.loss.main_weight=0",
        "--config.train.num_steps=2",
        "--config.eval.max_records=2",
    ]
    own = call(
        "train", *train, f"--config.data.path={killed}", f"--config.workdir={tmp_path / 'own'}"
    )
    assert "ssjax.distill" not in own.stderr
    people = call("train", *train, f"--config.workdir={tmp_path / 'people'}")
    assert "the generated sample was not written by" in people.stderr
    again = call(
        "distill",
        f"--workdir={tmp_path / 'own'}",
        *arguments(world, tmp_path / "again")[1:],
        "--mesh=1,1,1",
    )
    assert again.stdout.splitlines()[:2] == told.stdout.splitlines()[:2]
    assert (tmp_path / "again" / "train.jsonl").read_bytes() == (
        peace / "train.jsonl"
    ).read_bytes(), "a run with streams answers as its base"


def test_two_processes_on_a_mesh_write_what_one_writes(world, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    few = "--num_records=24"
    two = [
        start(world, tmp_path / "two", few, "--mesh=1,2,1", f"--distributed=localhost:{port},2,{i}")
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in two] == [0, 0]
    call("distill", *arguments(world, tmp_path / "one", few))
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
