"""The paper's comparison: its commands are valid, it goes on where it stopped, its report reads."""

import dataclasses
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import damage
import pytest

from ssjax import config as config_lib
from ssjax.errors import UserError
from ssjax.study import page, suites
from ssjax.study import steps as study_steps

ROOT = Path(__file__).parents[2]
TASKS = {f"{name}-{task.task}": task for name, tasks in suites.SUITES.items() for task in tasks}


def config_of(step):
    """The config that a training step asks for."""
    path, _, variant = step.arguments[1].removeprefix("--config=").partition(":")
    config = runpy.run_path(str(ROOT / path))["get_config"](variant)
    for argument in step.arguments[2:]:
        if argument.startswith("--config."):
            key, _, value = argument.removeprefix("--config.").partition("=")
            group, _, name = key.rpartition(".")
            target = config[group] if group else config
            target[name] = type(target[name])(value)
    return config_lib.from_config_dict(config)


def all_steps(task, directory):
    for trainings in (suites.models(task), suites.ablations(task)):
        yield from study_steps.steps(task, trainings, directory, "")


def training_configs(task, directory):
    steps = all_steps(task, directory)
    return {s.name.removeprefix("train-"): config_of(s) for s in steps if s.arguments[0] == "train"}


@pytest.mark.parametrize("name", TASKS)
def test_every_training_has_a_valid_config(name, tmp_path):
    task = TASKS[name]
    steps = list(all_steps(task, tmp_path))
    assert len({step.name for step in steps}) == len({step.result for step in steps}) == len(steps)
    configs = training_configs(task, tmp_path)
    compared = {"base", "draft", "finetune", "shared", "lossless", "detached"}
    compared |= {"medusa", "medusa-parent"}
    assert set(configs) == compared | {t.name for t in suites.ablations(task)}
    for model, config in configs.items():
        on_base = model not in ("base", "draft")
        long = task.steps if model in compared else task.ablation_steps
        assert config.train.num_steps == (long if on_base else task.base_steps)
        assert config.workdir == str(tmp_path / model)
        assert config.model.pretrained == (str(tmp_path / "base-model") if on_base else "")
    assert configs["base"].model.num_layers == task.num_layers
    assert configs["draft"].data.tokenizer == configs["base"].workdir
    if task.variant == "small":
        assert configs["medusa"].streams.medusa_heads == configs["lossless"].streams.num_streams


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("small")])
def test_a_draft_model_is_a_quarter_of_its_base(name, tmp_path):
    configs = training_configs(TASKS[name], tmp_path)
    vocab = configs["base"].data.tokenizer_vocab_size

    def weights(m):
        heads = 2 * m.num_heads + 2 * m.num_kv_heads
        return m.embed_dim * (m.num_layers * (heads * m.head_dim + 3 * m.mlp_dim) + vocab)

    assert 0.2 < weights(configs["draft"].model) / weights(configs["base"].model) < 0.3


def row(drafter, nodes, tokens):
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {
        "drafter": drafter,
        "draft_nodes": nodes,
        "identical": 4,
        "tokens_per_call": tokens,
        "call_reduction": tokens + 0.01,
        "acceptance_by_depth": [0.75, 0.25],
        "speedup": interval,
        "step_cost": 2.5,
        "pass_ms": 1.25,
        "extra_parameters": 250_000 if nodes else 0,
        "rouge1": 12.5,
        "rouge2": 3.0,
        "rougeLsum": 10.0,
        "intervals": {"rouge1": [11.0, 14.0], "rouge2": [2.5, 3.25], "rougeLsum": [9.0, 12.0]},
    }


def test_the_report_holds_what_was_measured_and_says_what_was_not(tmp_path):
    (task,) = suites.SUITES["smoke"]
    task = dataclasses.replace(task, ablation_steps=1)
    directory = tmp_path / "work" / task.task
    directory.mkdir(parents=True)
    steps = {
        "train-base": {"seconds": 90.0, "command": "x", "commit": "abc", "machine": "2 cores"},
        "train-lossless": {"seconds": 60.0, "command": "x", "commit": "abc", "machine": "2 cores"},
        "train-medusa": {"seconds": 30.0, "command": "x", "commit": "abc", "machine": "2 cores"},
    }
    (directory / "steps.json").write_text(json.dumps(steps))
    rows = [row("plain", 0, 1.0)] + [row(f"streams:num_nodes={n}", n, 1 + n / 10) for n in (2, 4)]
    rows += [row(f"medusa@DIR:num_nodes={n}", n, 1 + n / 20) for n in (2, 4)]
    rows += [row(f"medusa@DIR/medusa-parent:num_nodes={n}", n, 1 + n / 16) for n in (2, 4)]
    rows += [row("streams:tree=static:branching=3/3/3:kept_nodes=4", 39, 1.6)]
    rows += [row("streams:num_nodes=4:lookup_nodes=4", 8, 1.9)]
    benchmark = {"workdir": str(directory / "lossless"), "parameters": 1_000_000, "rows": rows}
    (directory / "benchmark-lossless.json").write_text(json.dumps(benchmark))
    (directory / "verify-lossless.json").write_text(json.dumps({"holds": True}))
    target = tmp_path / "docs" / "results.md"
    page.write(target, tmp_path / "work", [task], "smoke")
    text = target.read_text()
    assert "| 2 | 1.20 | 1.10 | 1.12 |" in text and "| 4 | 1.40 | 1.20 | 1.25 |" in text
    assert (
        "| `medusa:num_nodes=4` | 4 | 4 | 1.20 | 0.75 0.25 | 0.50 (0.40-0.60) | 2.50 | 250,000 "
        "| 2.00 | ROUGE-1 12.50 (11.00-14.00) |" in text
    )
    assert "| `streams:tree=static:branching=3/3/3:kept_nodes=4` | 39 | 1.60 | 1.25 |" in text
    assert "commit abc" in text and "| `base` | 750,000 | 24 | 1.5 | - |" in text
    assert "| `lossless` | 1,000,000 | 12 | 1.0 | 1.40 |" in text  # not the lookup's
    assert "| `medusa` | 1,000,000 | 12 | 0.5 | 1.20 |" in text
    heads, _, *rows = (
        text.partition("### Quality, plain decoding\n\n")[2].split("\n\n")[0].splitlines()
    )
    assert heads == "| model | ROUGE-1 | ROUGE-2 | ROUGE-Lsum |"
    shown = "12.50 (11.00-14.00) | 3.00 (2.50-3.25) | 10.00 (9.00-12.00)"
    assert rows == [f"| `base, lossless` | {shown} |"]
    assert "Certificate (`ssjax.verify`): holds." in text
    assert (
        "| dialogsum | **ours** (4) | 0.50 / 1.21 / 12.50 | not measured | not measured |" in text
    )
    # Also two models, their certificates and the ablations.
    assert text.count("not measured") == 7
    assert "DIR" not in text.partition("--data_path DATA --workdir DIR")[2]
    kept = target.with_suffix("") / task.task
    copy = json.loads((kept / "benchmark-lossless.json").read_text())
    assert copy == benchmark | {"workdir": f"DIR/{task.task}/lossless"}
    assert (kept / "tokens-per-call.png").read_bytes().startswith(b"\x89PNG")
    (target.with_suffix("") / "reading.md").write_text("What to make of it.")
    page.write(target, tmp_path / "work", [task], "smoke")
    assert target.read_text().startswith("What to make of it.\n\n# Results")

    dice = random.Random(0)
    whole = {path: path.read_bytes() for path in sorted(directory.glob("*.json"))}
    refused = 0
    for number in range(18):
        path = list(whole)[number % len(whole)]
        how = damage.odd_json if number % 2 else damage.odd_bytes
        path.write_bytes(how(whole[path], dice)[0])
        try:
            page.write(tmp_path / "other.md", tmp_path / "work", [task], "smoke")
        except UserError as error:
            refused += 1
            assert str(tmp_path) in str(error)
        path.write_bytes(whole[path])
    assert refused > 6


def test_a_step_that_fails_is_one_line_with_its_log(tmp_path):
    arguments = ("export", "--workdir=nowhere", "--format=orbax", f"--target={tmp_path / 'x'}")
    step = study_steps.Step("export-base", arguments, tmp_path / "x")
    with pytest.raises(UserError, match="export-base failed: error: .*nowhere.*export-base.log"):
        study_steps.run(step, tmp_path, "")
    noted = json.loads((tmp_path / "steps.json").read_text())["export-base"]
    assert noted["seconds"] > 0 and noted["command"].endswith(f"--target=DIR/{tmp_path.name}/x")


@pytest.mark.stress
def test_the_smoke_suite_is_stopped_and_goes_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ssjax.reproduce",
        "--suite=smoke",
        f"--workdir={tmp_path}",
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # else a training starts itself anew, 2 s each
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),  # its steps share programs
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = subprocess.Popen(command, cwd=ROOT, env=environment)
    (task,) = suites.SUITES["smoke"]
    metrics = tmp_path / task.task / "draft" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 42
    assert not (tmp_path / task.task / "train-draft.json").exists()
    assert not (tmp_path / "results.md").exists()
    before = (tmp_path / task.task / "train-base.json").stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=1500)
    assert (tmp_path / task.task / "train-base.json").stat().st_mtime_ns == before
    text = (tmp_path / "results.md").read_text()
    assert "not measured" not in text and text.count("Certificate (`ssjax.verify`): holds.") == 3
    results = page.read_results(tmp_path / task.task)
    for row in results["benchmark-lossless"]["rows"]:
        assert row["identical"] == results["benchmark-lossless"]["prompts"]
