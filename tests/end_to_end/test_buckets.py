"""A run that lives in a bucket with all that belongs to it: killed, continued, read, exported.

Against an emulator of Cloud Storage on loopback; a real bucket was never tried.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import buckets
import jax
import numpy as np
import oracles
import pytest
from orbax.checkpoint import v1 as ocp

from ssjax.config import ModelConfig
from ssjax.data import sample
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.files import manifest, places
from ssjax.files.writing import new_directory
from ssjax.models.parameters import flatten
from ssjax.training.metric_parts import read_parts
from ssjax.weights import exported, huggingface
from ssjax.weights.load import load_trained
from ssjax.weights.saved_steps import steps

pytest.importorskip("gcp_storage_emulator", reason="the emulator of Cloud Storage is not installed")
pytest.importorskip("gcsfs", reason="gcsfs, which reads gs://, is not installed")

pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring"),
]

ROOT = Path(__file__).parents[2]
NUM_KILLS, NUM_STEPS = 10, 24
SIZES = dict(vocab_size=520, embed_dim=32, num_layers=3, mlp_dim=48)
MODEL = ModelConfig(num_heads=4, num_kv_heads=2, head_dim=8, **SIZES)
ARGUMENTS = [
    "--config=experiments/dialogsum.py:smoke",
    "--config.model.pretrained=gs://bucket/base",
    "--config.data.prepared_dir=gs://bucket/prepared",
    "--config.adaptation.mode=shared",
    "--config.adaptation.rank=3",
    "--config.optimizer.warmup_steps=2",
    f"--config.train.num_steps={NUM_STEPS}",
    "--config.train.log_every=1",
    "--config.train.eval_prompts=0",
    "--config.checkpoint.save_every=2",
    "--config.eval.max_records=2",
    "--distributed=off",
]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """The environment of programs that use the emulator; this process does, too."""
    before = dict(os.environ)
    with buckets.emulator() as environment:
        caches = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("caches"))}
        os.environ.update(environment | caches)
        places._store.cache_clear()
        yield os.environ | {
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # or a start begins its program again
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": "",
        }
    os.environ.clear()
    os.environ.update(before)
    places._store.cache_clear()


@pytest.fixture(scope="module")
def base(cloud):
    """A random Llama with a tokenizer, as Hugging Face files in the bucket."""
    records = sample.generate({"train": 400}, 0)["train"]
    tokenizer = train_tokenizer([r["dialogue"] for r in records], 512, symbols=())
    model = oracles.make_model(num_streams=0, num_stream_layers=1, **vars(MODEL))
    params = oracles.random_params(model, seed=1, table_scale=0.4)
    with new_directory("gs://bucket/base") as directory:
        tokenizer.save(directory)
        huggingface.write_params(directory, MODEL, params, huggingface.llama_config_json(MODEL))
    return directory


@pytest.fixture(scope="module")
def runs(cloud, base, tmp_path_factory):
    """A run that was killed again and again and one in peace; moments of the kills, their log."""
    directory = tmp_path_factory.mktemp("runs")
    script = str(Path(__file__).with_name("kill_at_random.py"))
    done = subprocess.run(
        [sys.executable, script, str(directory), str(NUM_KILLS), "0", *ARGUMENTS],
        cwd=ROOT,
        env=cloud | {"BUCKET_RUNS": "gs://bucket/runs"},
        capture_output=True,
        text=True,
    )
    log = (directory / "log").read_text()
    assert done.returncode == 0, done.stderr + log
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["codes"] == {"killed": 0, "peace": 0}, log
    return result["moments"], log


def run_of(name):
    return places.of("gs://bucket/runs") / name


def leaves(state):
    """By name."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(runs):
    moments, log = runs
    assert "ended" not in moments and moments.count("saving") >= 3, moments
    assert "Traceback" not in log
    assert log.count("continuing from step") >= NUM_KILLS // 2
    ours, theirs = (
        leaves(
            ocp.load(
                str(run_of(name) / "checkpoints" / str(NUM_STEPS)), checkpointable_name="state"
            )
        )
        for name in ("killed", "peace")
    )
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_nothing_is_lost_and_nothing_is_left_half(runs):
    for name in ("killed", "peace"):
        directory = run_of(name) / "checkpoints"
        there = {path.name for path in directory.iterdir()}
        assert there == {str(step) for step in steps(directory)}  # all committed
        assert [manifest.damage(directory / step) for step in there] == [""] * len(there)
        assert not (run_of(name) / "lock").exists()

    def told(name):
        kinds = ("step", "loss", "accuracy", "validation", "grad_norm")  # no seconds, no memory
        records = [
            {key: value for key, value in record.items() if key.startswith(kinds)}
            for record in read_parts(run_of(name) / "metrics")
        ]
        for record in records:
            record.pop("step_seconds", None)
        return [record for record in records if len(record) > 1]

    assert told("killed") == told("peace")
    assert {r["step"] for r in told("killed")} == set(range(1, NUM_STEPS + 1))
    parts = list((run_of("killed") / "metrics").iterdir())
    assert 2 <= len(parts) <= NUM_KILLS + 1


def test_prepared_data_is_shared_through_the_bucket(runs):
    [prepared] = places.of("gs://bucket/prepared").iterdir()
    assert manifest.damage(prepared) == ""


def test_every_export_goes_to_the_bucket_and_is_the_run(runs, base):
    trained = load_trained("gs://bucket/runs/killed")
    assert trained.step == NUM_STEPS
    targets = {}
    for form in ("hf", "orbax", "adapter"):
        with new_directory(f"gs://bucket/export/{form}") as target:
            getattr(exported, f"write_{form}")(target, trained, "float32")
        targets[form] = str(target)
        assert not (target / ".incomplete").exists()
    adapted = load_trained(base, adapter=targets["adapter"])
    for name, leaf in flatten(trained.params).items():
        np.testing.assert_array_equal(flatten(adapted.params)[name], leaf, err_msg=name)
    _, merged = exported.merged(trained)
    for form in ("hf", "orbax"):
        read = flatten(load_trained(targets[form]).params)
        for name, leaf in flatten(merged).items():
            np.testing.assert_array_equal(read[name], leaf, err_msg=f"{form} {name}")


def test_verbs_read_the_bucket_and_write_to_it(runs, cloud):
    def call(verb, *arguments):
        command = [sys.executable, "-m", f"ssjax.{verb}", "--workdir=gs://bucket/runs/killed"]
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=cloud, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    call("evaluate", "--max_records=2", "--json=gs://bucket/out/evaluation.json")
    for file in (
        places.of("gs://bucket/out/evaluation.json"),
        run_of("killed") / "evaluation.json",
    ):
        assert json.loads(file.read_bytes())
    call(
        "generate", "--prompt=#Person1#: Hi!", "--max_new_tokens=4", "--json=gs://bucket/out/g.json"
    )
    assert json.loads(places.of("gs://bucket/out/g.json").read_bytes())
    call("export", "--format=adapter", "--target=gs://bucket/out/adapter")
    assert load_trained("gs://bucket/base", adapter="gs://bucket/out/adapter").trainable
