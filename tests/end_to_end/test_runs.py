"""The verbs as a user runs them: processes, files, signals, exit codes, one-line errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import verb_server
from orbax.checkpoint import v1 as ocp

from ssjax.data import sample
from ssjax.training import lock

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # else training starts itself anew, 2 s each
}
LAST_STEP = 24  # of the smoke variant

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
DIALOGUE = "#Person1#: Hi Ben, are you free on Friday?\\n#Person2#: Yes, at 7 pm."


def command(verb, *arguments):
    return [sys.executable, "-m", f"ssjax.{verb}", *map(str, arguments)]


def call(verb, *arguments, text=""):
    """A verb in a fork of a process that has imported what verbs need, with a standard input.

    Compiled in half the time, as most tests; trainings and their evaluation are optimised.
    """
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return verb_server.server(**ENVIRONMENT | quick).call(verb, arguments, text=text)


def call_anew(verb, *arguments):
    """A verb in a process of its own."""
    return subprocess.run(
        command(verb, *arguments),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
    )


def train_arguments(workdir, prepared, *more):
    return [
        "--config=experiments/dialogsum.py:smoke",
        f"--config.workdir={workdir}",
        f"--config.data.prepared_dir={prepared}",
        *more,
    ]


def assert_one_line_error(finished, *fragments, code=2):
    assert finished.returncode == code, finished.stderr
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in finished.stderr, finished.stderr
    for fragment in fragments:
        assert fragment in lines[0]


def assert_keeps_programs(finished):
    place = ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"]
    assert finished.stderr.count(f"compiled programs are kept in {place}\n") == 1


def saved_params(workdir):
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    state = ocp.load(str(workdir / "checkpoints" / str(steps[-1])), checkpointable_name="state")
    return steps[-1], state


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Most processes here compile the same programs."""
    ENVIRONMENT["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    ENVIRONMENT["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    """A finished smoke run, never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    finished = call_anew("train", *train_arguments(workdir, prepared))
    assert finished.returncode == 0, finished.stderr
    assert "identical outputs" in finished.stdout and "8 of 8" in finished.stdout
    assert_keeps_programs(finished)
    return workdir


def test_run_directory_holds_what_the_readme_says(run):
    assert {path.name for path in run.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "evaluation.json",
        "tokenizer.model",
    }
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["identical"] == evaluation["prompts"] == 8
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [4, 8, 12, 16, 20, 24]
    assert [r["step"] for r in records if "validation_loss_main" in r] == [12, 24]
    assert [r["step"] for r in records if "validation_tokens_per_call" in r] == [12, 24]
    assert evaluation["teacher_forcing"]["prompts"] == 4
    losses = [r["loss_stream_3"] for r in records if "loss" in r]
    assert losses[-1] < losses[0]


def test_old_checkpoints_go_and_the_best_stays(run):
    steps = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    assert {18, 24} <= steps and 6 not in steps


def test_a_stopped_run_continues_to_the_same_weights(run, prepared, tmp_path):
    """Ctrl-C, SIGTERM, SIGKILL, one after another. Bit for bit: weights, optimizer and step."""
    workdir = tmp_path / "run"
    arguments = train_arguments(workdir, prepared)
    for number, stop_at in ((signal.SIGINT, 4), (signal.SIGTERM, 12), (signal.SIGKILL, 20)):
        with subprocess.Popen(
            command("train", *arguments),
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            for line in process.stderr:
                if line.startswith(f"step {stop_at}/"):
                    process.send_signal(number)
                    break
            rest = process.stderr.read()
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 42, rest
            assert "saved; run the same command to continue" in rest
    finished = call_anew("train", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "continuing from step" in finished.stderr

    expected_step, expected = saved_params(run)
    step, state = saved_params(workdir)
    assert step == expected_step == LAST_STEP
    assert _compare_leaves(expected, state) > 30
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [r["step"] for r in records if "loss" in r]
    assert trained == sorted(set(trained)) and trained[-1] == LAST_STEP
    never_stopped = (run / "metrics.jsonl").read_text().splitlines()
    assert _drafts(records) == _drafts(map(json.loads, never_stopped))


def _drafts(records):
    """What each validation decoded, once a step."""
    found = [r for r in records if "validation_tokens_per_call" in r]
    return [{k: v for k, v in r.items() if k != "time"} for r in found]


def _compare_leaves(expected, actual):
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys()
        return sum(_compare_leaves(expected[key], actual[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return sum(_compare_leaves(e, a) for e, a in zip(expected, actual, strict=True))
    if expected is None:
        return 0
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))
    return 1


def test_a_second_start_of_a_finished_run_only_evaluates(run, prepared):
    metrics = (run / "metrics.jsonl").read_bytes()
    finished = call_anew("train", *train_arguments(run, prepared))
    assert finished.returncode == 0 and f"continuing from step {LAST_STEP}" in finished.stderr
    assert "8 of 8" in finished.stdout and (run / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.stress
def test_a_run_without_gains_ends_and_its_evaluation_stops_and_goes_on(prepared, tmp_path):
    """No draft reaches depth 3 so early: the second validation is no gain. Then SIGTERM."""
    workdir, quick = tmp_path / "run", {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    settings = {
        "train.eval_every": 2,
        "train.patience": 1,
        "checkpoint.best_by": "validation_acceptance_3",
        "eval.max_records": 6,
    }
    more = [f"--config.{key}={value}" for key, value in settings.items()]
    arguments = command("train", *train_arguments(workdir, prepared, *more))
    starting = dict(cwd=ROOT, env=os.environ | ENVIRONMENT | quick, text=True)
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(arguments, **starting, **pipes) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("evaluating: "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 42, "".join(seen) + rest
    ends = "the run ends at step 4: validation_acceptance_3 was no better"
    for start in ("devices: ", "compiled for rows of", ends, "goodput "):
        assert any(line.startswith(start) for line in seen), start
    assert "SIGTERM: stopping after this batch" in rest and "stopped in the evaluation" in rest
    assert len((workdir / "evaluation.partial.jsonl").read_text().splitlines()) > 1
    assert not (workdir / "evaluation.json").exists()

    finished = subprocess.run(arguments, **starting, capture_output=True, timeout=900)
    assert finished.returncode == 0, finished.stderr
    assert "evaluation goes on after" in finished.stderr and "6 of 6" in finished.stdout
    assert not list(workdir.glob("evaluation.partial*"))
    assert json.loads((workdir / "evaluation.json").read_text())["step"] == 4


def test_generate_from_flag_file_and_standard_input(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeff{DIALOGUE}\n\n{DIALOGUE} Fine.\u2028\n")
    out = tmp_path / "out.json"
    by_flag = call("generate", "--workdir", run, "--prompt", DIALOGUE)
    by_file = call("generate", "--workdir", run, "--prompts_file", file, "--json", out)
    by_stdin = call("generate", "--workdir", run, text=file.read_text())
    assert_keeps_programs(by_stdin)
    assert by_flag.returncode == by_file.returncode == by_stdin.returncode == 0, by_file.stderr
    assert by_file.stdout == by_stdin.stdout
    first, blank, _ = by_file.stdout.splitlines()
    assert (first, blank) == (by_flag.stdout.splitlines()[0], "")
    answers = json.loads(out.read_text())
    assert [a["prompt"] for a in answers] == [
        DIALOGUE.replace("\\n", "\n"),
        "",
        DIALOGUE.replace("\\n", "\n") + " Fine.\u2028",
    ]
    assert [a["finish"] == "empty" for a in answers] == [False, True, False]
    assert [0 < a["tokens"] <= 16 for a in answers] == [True, False, True]


def test_generate_writes_log_probs_and_names_a_lossy_rule(run, tmp_path):
    out = tmp_path / "out.json"
    call(
        "generate",
        "--workdir",
        run,
        "--prompt",
        DIALOGUE,
        "--json",
        out,
        "--log_probs",
        "--accept",
        "typical",
        "--temperature",
        1.0,
        "--min_p",
        0.05,
        "--min_new_tokens",
        4,
        "--banned_tokens",
        5,
        "--banned_tokens",
        7,
        "--stop",
        "\\n",
        "--stop",
        "###",
    )
    [answer] = json.loads(out.read_text())
    assert answer["acceptance"] == "typical, lossy"
    assert len(answer["log_probs"]) == len(answer["token_ids"]) == answer["tokens"] > 4
    assert max(answer["log_probs"]) <= 0 and not {5, 7} & set(answer["token_ids"])
    assert "\n" not in answer["output"]


def test_generate_streams_the_same_text(run):
    arguments = ("--workdir", run, "--prompt", DIALOGUE, "--prompt", DIALOGUE + " Fine.")
    sampled = ("--temperature", 0.9, "--seed", 3)
    streamed = call("generate", *arguments, *sampled, "--stream")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout == call("generate", *arguments, *sampled).stdout


def test_generate_with_no_room_prints_an_empty_line(run):
    finished = call("generate", "--workdir", run, "--prompt", DIALOGUE, "--max_new_tokens", 0)
    assert (finished.returncode, finished.stdout) == (0, "\n")


def test_a_run_of_a_task_of_ones_own_is_opened_with_its_file(run, tmp_path):
    """Without the file one line says what is missing; a file with an error is one line as well."""
    own = shutil.copytree(run, tmp_path / "own")
    values = json.loads((own / "config.json").read_text())
    values["data"]["task"] = "shop"
    (own / "config.json").write_text(json.dumps(values))
    file = tmp_path / "shop.py"
    file.write_text(
        "import ssjax\n"
        "ssjax.register_task('shop', prompt='{product}: {question} Answer:', answer='answer')\n"
    )
    arguments = ("generate", "--workdir", own, "--prompt", "Lamp: which bulb?")
    arguments += ("--max_new_tokens", 0)
    assert_one_line_error(call(*arguments), "task 'shop'", "not registered", "--task_file")
    finished = call(*arguments, "--task_file", file)
    assert (finished.returncode, finished.stdout) == (0, "\n"), finished.stderr
    file.write_text("import ssjax\nssjax.register_task('shop')\n")
    assert_one_line_error(call(*arguments, "--task_file", file), "shop.py, line 2: TypeError")


def test_evaluate_writes_json_and_accepts_changes(run, tmp_path):
    out = tmp_path / "evaluation.json"
    finished = call(
        "evaluate",
        "--workdir",
        run,
        "--split",
        "validation",
        "--max_records",
        5,
        "--json",
        out,
        "--batch_size",
        2,
        "--num_nodes",
        6,
        "--temperature",
        1.0,
        "--num_streams",
        2,
        "--checkpoint",
        "best",
    )
    assert finished.returncode == 0, finished.stderr
    evaluation = json.loads(out.read_text())
    assert evaluation["identical"] == evaluation["prompts"] == 5
    assert (evaluation["split"], evaluation["batch_size"]) == ("validation", 2)
    assert (evaluation["draft_nodes"], evaluation["streams"]) == (6, 2)


@pytest.mark.stress  # a program for every candidate
def test_calibrate_then_generate_and_evaluate_use_it(run, tmp_path):
    """On a copy; as measured, then as if on a machine where the best draft pays."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    picture, result = tmp_path / "picture.png", tmp_path / "result.json"
    done = call(
        "calibrate",
        "--workdir",
        workdir,
        "--batch_sizes",
        "2",
        "--nodes",
        "3",
        "--num_prompts",
        6,
        "--plot",
        picture,
        "--json",
        result,
    )
    assert done.returncode == 0, done.stderr
    assert "chosen: " in done.stdout and "acceptance by stream and rank" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    kept = json.loads((workdir / "calibration.json").read_text())
    assert kept == json.loads(result.read_text())
    [entry] = kept["calibrations"]
    assert (entry["step"], entry["batch_size"], entry["num_streams"]) == (LAST_STEP, 2, 3)
    entry["chosen"] = entry["candidates"][-1]
    entry["summary"] = "the last candidate"
    (workdir / "calibration.json").write_text(json.dumps(kept))

    file, out = tmp_path / "prompts.txt", tmp_path / "out.json"
    file.write_text(f"{DIALOGUE}\n{DIALOGUE} Fine.\n")
    ask = ["--workdir", workdir, "--prompts_file", file, "--batch_size", 2]
    used = call("generate", *ask, "--json", out)
    assert used.returncode == 0 and "calibrated: the last candidate;" in used.stderr
    for own in ("--nocalibration", "--num_nodes=4"):
        finished = call("generate", *ask, own)
        assert finished.stdout == used.stdout and "calibrated" not in finished.stderr
    alone = call("generate", "--workdir", workdir, "--prompt", DIALOGUE)
    assert "ignored: it is for batch size 2, not 1" in alone.stderr
    assert alone.stdout == used.stdout.splitlines()[0] + "\n"

    evaluated = call("evaluate", *ask[:2], "--batch_size=2", "--max_records=4", "--json", out)
    assert evaluated.returncode == 0 and "calibrated: the last" in evaluated.stderr
    evaluation = json.loads(out.read_text())
    assert evaluation["identical"] == evaluation["prompts"] == 4
    assert evaluation["deferred"] == entry["chosen"]["deferred"]
    nodes = entry["chosen"]["drafter"]
    nodes = nodes.get("nodes") or len(nodes["parents"]) - 1
    assert evaluation["draft_nodes"] == nodes != 4


def test_bad_command_lines_get_one_line(run, prepared, tmp_path):
    smoke = train_arguments(tmp_path / "x", prepared)
    cases = (
        (["train"], ["--config"]),
        (["train", "--config=experiments/none.py"], ["none.py"]),
        (["train", "--config=experiments/dialogsum.py:huge"], ["huge", "sample"]),
        (["train", *smoke, "--config.model.embed_dmi=3"], ["embed_dmi"]),
        (["train", *smoke, "stray"], ["stray"]),
        (["train", *train_arguments(run, prepared, "--config.seed=5")], ["seed=0", "5"]),
        (["generate", "--workdir", tmp_path / "none", "--prompt", "x"], ["neither a directory"]),
        (["generate", "--workdir", run], ["no prompt"]),
        (["generate", "--workdir", run, "--prompt", "x", "--log_probs"], ["--json FILE"]),
        (
            ["generate", "--workdir", run, "--prompt", "x", "--accept", "typical"],
            ["decode.temperature above 0"],
        ),
        (["generate", "--workdir", run, "--prompt", "x", "--checkpoint", "7"], ["'7'", "24"]),
        (["evaluate", "--workdir", run, "--split", "dev"], ["split"]),
        (["evaluate"], ["workdir"]),
        (["calibrate", "--workdir", run, "--batch_sizes", "1,two"], ["--batch_sizes=1,two"]),
        (["calibrate", "--workdir", run, "--nodes", "0"], ["--nodes=0", "positive"]),
        (["calibrate", "--workdir", run, "--plot", "picture.svg"], ["picture.svg", ".png"]),
        (["calibrate", "--workdir", run, "--num_prompts", "0"], ["num_prompts"]),
    )
    for arguments, fragments in cases:
        assert_one_line_error(call(*arguments), *fragments)
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.stress  # a training of its own; by default tests/training/test_reporting.py
def test_divergence_stops_with_the_step_number(prepared, tmp_path):
    finished = call(
        "train",
        *train_arguments(
            tmp_path / "run",
            prepared,
            "--config.optimizer.learning_rate=1e38",
            "--config.optimizer.clip_norm=1e30",
            "--config.optimizer.warmup_steps=1",
        ),
    )
    assert_one_line_error(finished, "diverged at step", code=4)


def test_damage_other_data_and_a_held_directory_end_in_one_line(run, prepared, tmp_path):
    damaged = shutil.copytree(run, tmp_path / "run")
    blob = max(damaged.glob("checkpoints/24/state/**/d/*"), key=lambda file: file.stat().st_size)
    os.truncate(blob, 5000)
    data = tmp_path / "data"
    data.mkdir()
    for split, records in sample.generate({"train": 9, "validation": 2, "test": 2}, 0).items():
        (data / f"{split}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    before = (run / "config.json").read_bytes()
    cases = (
        (["generate", "--workdir", damaged, "--prompt", "x"], ["24 is damaged", "whole: 18"], 3),
        (
            ["train", *train_arguments(run, prepared, f"--config.data.path={data}")],
            ["other data: train, validation, test of"],
            2,
        ),
        (
            ["train", *train_arguments(tmp_path / "held", prepared)],
            [f"held is in use by process {os.getpid()},"],
            2,
        ),
    )
    with lock.hold(tmp_path / "held"):
        for arguments, fragments, code in cases:
            assert_one_line_error(call(*arguments), *fragments, code=code)
        assert [path.name for path in (tmp_path / "held").iterdir()] == ["lock"]
    assert (run / "config.json").read_bytes() == before


@pytest.mark.stress
def test_no_room_for_a_checkpoint_ends_the_training(prepared, tmp_path):
    """A limit on the size of files stands in for a full disk; then there is room, and damage."""
    arguments = train_arguments(tmp_path / "run", prepared)
    limited = ["bash", "-c", 'ulimit -f 300 && exec "$@"', "-", *command("train", *arguments)]
    finished = subprocess.run(
        limited, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=500
    )
    assert_one_line_error(finished, "checkpoints/6 could not be saved", "File too large")
    finished = call("train", *arguments, "--config.eval.max_records=1")
    assert finished.returncode == 0, finished.stderr
    for file in (tmp_path / "run" / "checkpoints" / "24" / "state").glob("**/d/*"):
        os.truncate(file, 100)
    finished = call("train", *arguments, "--config.eval.max_records=1")
    assert finished.returncode == 0, finished.stderr
    assert "24 is damaged" in finished.stderr and "continuing from step 18" in finished.stderr
