"""launch/tpu_vm.sh against a stand-in gcloud that is first on the PATH of the test."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
VERBS = ("create", "setup", "run", "babysit", "status", "logs", "stop", "delete")
SETTINGS = {
    "SSJAX_NAME": "my-tpu",
    "SSJAX_ZONE": "us-west4-a",
    "SSJAX_TYPE": "v5litepod-16",
    "SSJAX_PROJECT": "my-project",
    "SSJAX_REPO": "https://github.com/my-org/ssjax.git",
    "SSJAX_BUCKET": "my-bucket",
    "SSJAX_WORKDIR": "/mnt/ssjax/run",
}
TRAIN = ("--", "--config", "experiments/dialogsum.py")
WHERE = ["--zone=us-west4-a", "--project=my-project"]
AWKWARD = [
    "two words",
    "it's",
    'a "b"',
    "$HOME",
    "$(touch broken)",
    "`x`",
    "(a;b)&c|d",
    "*",
    "\\",
    "ünï→",
    "",
    "a,b=c",
    "--config.name=x y",
    "~",
    "#no",
]


class Launcher:
    """tpu_vm.sh in a sandbox, and what it called."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        (sandbox.bin / "gcloud").symlink_to(Path(__file__).with_name("stand_in_gcloud.sh"))
        assert sandbox.where("gcloud") == str(sandbox.bin / "gcloud")

    def __call__(self, *argv, env=SETTINGS, **script):
        """Runs the script; `script` is what the stand-in answers."""
        self.answer(**script)
        done = self.sandbox.run(SCRIPT, *argv, **env)
        assert self.sandbox.lines("unexpected") == []
        assert "unbound variable" not in done.stderr
        return done

    def answer(self, **script):
        """Sets what the stand-in answers: a list for each kind."""
        for kind in ("states", "create", "delete", "setup", "train"):
            lines = [f"{answer}\n" for answer in script.get(kind, [])]
            self.sandbox.file(f"answers/{kind}", "".join(lines))

    @property
    def calls(self):
        """Every argv that the stand-in saw."""
        file = self.sandbox.path / "calls"
        calls = file.read_text().split("\x1e")[:-1] if file.exists() else []
        return [call.split("\0")[:-1] for call in calls]

    @property
    def steps(self):
        """The calls in short: describe, create, delete, setup, train."""
        return [step(call) for call in self.calls]

    @property
    def sleeps(self):
        """Seconds slept, in order."""
        return [int(line) for line in self.sandbox.lines("sleeps")]


def step(call):
    if call[2] == "queued-resources":
        return call[3]
    text = remote(call)
    return "train" if "ssjax.train " in text else "setup" if "environment" in text else "ssh"


def remote(call):
    """What the hosts of a `tpu-vm ssh` call run."""
    [command] = flags(call, "--command")
    return command.removeprefix("--command=")


def flags(call, *names):
    return [word for word in call if word.split("=")[0] in names]


def trainer_argv(remote_command):
    """The words that the shell of a host hands to the trainer."""
    words = shlex.split(remote_command)
    return words[words.index("ssjax.train") + 1 :]


@pytest.fixture
def launcher(sandbox):
    return Launcher(sandbox)


def test_create_waits_until_active(launcher):
    states = ["MISSING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "ACTIVE"]
    done = launcher("create", "--spot", "--max-poll=60", states=states, create=[0])
    assert done.returncode == 0, done.stderr
    assert launcher.steps == ["describe", "create", *["describe"] * 5]
    assert launcher.calls[1] == [
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "my-tpu",
        "--node-id=my-tpu",
        *WHERE,
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert launcher.sleeps == [10, 20, 40, 60, 60]
    assert "WAITING_FOR_RESOURCES" in done.stderr


def test_create_setup_run_delete(launcher):
    assert launcher("create", states=["MISSING", "ACTIVE"], create=[0]).returncode == 0
    assert launcher("setup", setup=[0]).returncode == 0
    assert launcher("run", *TRAIN, train=[0]).returncode == 0
    assert launcher("delete", delete=[0]).returncode == 0
    assert launcher.steps == ["describe", "create", "describe", "setup", "train", "delete"]
    setup, run, delete = launcher.calls[3:]
    for call in (setup, run):
        assert call[2:5] == ["tpu-vm", "ssh", "my-tpu"]
        assert flags(call, "--zone", "--project", "--worker") == [*WHERE, "--worker=all"]
    assert trainer_argv(remote(run)) == [*TRAIN[1:], "--config.workdir=/mnt/ssjax/run"]
    assert delete[3:] == ["delete", "my-tpu", *WHERE, "--force", "--quiet"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDING", "SUSPENDED"])
def test_create_reports_a_lost_tpu(launcher, state):
    done = launcher("create", states=["MISSING", "PROVISIONING", state], create=[0])
    assert done.returncode == 1
    assert f"my-tpu is {state}" in done.stderr
    assert "delete" not in launcher.steps


def test_create_waits_no_longer_than_asked(launcher):
    done = launcher("create", "--max-wait", "0", states=["WAITING_FOR_RESOURCES"])
    assert done.returncode == 1
    assert "after 0 seconds" in done.stderr


def test_create_goes_on_with_a_request_that_stands(launcher):
    assert launcher("create", states=["PROVISIONING", "ACTIVE"]).returncode == 0
    assert launcher.steps == ["describe", "describe"]


def test_create_asks_once_while_describe_lags(launcher):
    assert launcher("create", states=["MISSING"] * 3 + ["ACTIVE"], create=[0]).returncode == 0


def test_describe_may_fail_now_and_then(launcher):
    states = ["MISSING", "ERROR", "ERROR", "PROVISIONING", "ERROR", "ERROR", "ERROR", "ACTIVE"]
    done = launcher("create", states=states, create=[0])
    assert done.returncode == 0
    assert "UNAVAILABLE" in done.stderr


def test_describe_that_always_fails_ends(launcher):
    done = launcher("create", states=["ERROR"] * 5)
    assert done.returncode == 1
    assert "5 times" in done.stderr


def test_failing_gcloud_create_ends_create(launcher):
    assert launcher("create", states=["MISSING"], create=[1]).returncode == 1


def test_babysit_recreates_after_preemption_and_resumes(launcher):
    states = ["MISSING", "ACTIVE", "SUSPENDED", "PROVISIONING", "ACTIVE"]
    done = launcher(
        "babysit",
        "--spot",
        *TRAIN,
        states=states,
        create=[0, 0],
        delete=[0],
        setup=[0, 0],
        train=[255, 0],
    )
    assert done.returncode == 0, done.stderr
    assert launcher.steps == [
        "describe",
        "create",
        "describe",
        "setup",
        "train",
        "describe",
        "delete",
        "create",
        "describe",
        "describe",
        "setup",
        "train",
    ]
    creates = [call for call in launcher.calls if step(call) == "create"]
    trains = [call for call in launcher.calls if step(call) == "train"]
    assert creates[0] == creates[1]
    assert trains[0] == trains[1]
    assert not flags(creates[0], "--metadata", "--metadata-from-file")


def test_babysit_continues_after_42_without_a_new_setup(launcher):
    done = launcher("babysit", *TRAIN, states=["ACTIVE"] * 3, setup=[0], train=[42, 255, 0])
    assert done.returncode == 0
    assert launcher.steps == [
        "describe",
        "setup",
        "train",
        "describe",
        "train",
        "describe",
        "train",
    ]


def test_babysit_sets_up_again_after_a_crash(launcher):
    done = launcher("babysit", *TRAIN, states=["ACTIVE"] * 2, setup=[0, 0], train=[1, 0])
    assert done.returncode == 0
    assert launcher.steps == ["describe", "setup", "train"] * 2


def test_babysit_retries_a_failed_setup_whatever_its_code(launcher):
    done = launcher("babysit", *TRAIN, states=["ACTIVE"] * 2, setup=[2, 0], train=[0])
    assert done.returncode == 0


def test_babysit_gives_up_with_the_last_code(launcher):
    done = launcher(
        "babysit",
        "--max-restarts=4",
        "--backoff=5",
        "--max-backoff=15",
        *TRAIN,
        states=["ACTIVE"] * 5,
        setup=[0] * 5,
        train=[1, 1, 1, 1, 7],
    )
    assert done.returncode == 7
    assert "gave up after 4 restarts" in done.stderr
    assert launcher.sleeps == [5, 10, 15, 15]


def test_babysit_gives_up_on_a_tpu_that_always_fails(launcher):
    done = launcher(
        "babysit",
        "--max-restarts=1",
        *TRAIN,
        states=["FAILED", "FAILED", "FAILED", "FAILED"],
        delete=[0, 0],
        create=[0, 0],
    )
    assert done.returncode == 1
    assert "gave up after 1 restarts" in done.stderr


def test_long_training_clears_the_count(launcher):
    done = launcher(
        "babysit",
        "--max-restarts=1",
        "--reset-after=0",
        *TRAIN,
        states=["ACTIVE"] * 4,
        setup=[0],
        train=[42, 42, 42, 0],
    )
    assert done.returncode == 0
    assert launcher.sleeps == [10, 10, 10]


@pytest.mark.parametrize("code", [2, 3, 4])
def test_what_would_end_so_again_is_not_retried(launcher, code):
    done = launcher("babysit", *TRAIN, states=["ACTIVE"], setup=[0], train=[code])
    assert done.returncode == code
    assert launcher.steps == ["describe", "setup", "train"]
    assert launcher.sleeps == []


def test_a_call_that_gcloud_does_not_understand_is_not_retried(launcher):
    done = launcher("babysit", *TRAIN, states=["MISSING"], create=[2])
    assert done.returncode == 2


@pytest.mark.parametrize("code", [0, 1, 2, 42, 255])
def test_run_returns_the_code_of_the_training(launcher, code):
    assert launcher("run", *TRAIN, train=[code]).returncode == code


def test_status_logs_stop(launcher):
    assert launcher("status", states=["WAITING_FOR_RESOURCES"]).stdout == "WAITING_FOR_RESOURCES\n"
    assert launcher("status", states=["MISSING"]).stdout == "MISSING\n"
    assert launcher("status", states=["ERROR"]).returncode == 1
    assert launcher("logs", "--worker=all", "--tail", "7", "--follow").returncode == 0
    assert "--worker=all" in launcher.calls[-1]
    assert remote(launcher.calls[-1]).startswith("tail -n 7 -F ")
    assert launcher("stop").returncode == 0
    assert flags(launcher.calls[-1], "--worker") == ["--worker=all"]


# --- quoting ---


def test_quoting_survives_two_shells(launcher):
    done = launcher("run", "--dry-run", "--", *AWKWARD)
    [line] = done.stdout.splitlines()
    assert trainer_argv(remote(shlex.split(line))) == [
        *AWKWARD,
        "--config.workdir=/mnt/ssjax/run",
    ]


def test_dry_run_prints_what_would_run(launcher):
    """Pasted into a shell, a dry run calls gcloud as the real run does."""
    line = launcher("run", "--env", "A=x y", "--dry-run", "--", *AWKWARD).stdout
    assert launcher.calls == []
    launcher("run", "--env", "A=x y", "--", *AWKWARD, train=[0])
    launcher.answer(train=[0])
    launcher.sandbox.run("bash", "-c", line)
    assert launcher.calls[0] == launcher.calls[1]


def host(sandbox, trainer):
    """A host after setup: a home with a checkout; `trainer` is the script that its Python runs."""
    sandbox.file("ssjax/launch/tpu_startup.sh", (ROOT / "launch/tpu_startup.sh").read_text())
    sandbox.file("ssjax/.venv/bin/python", f"#!/bin/bash\n{trainer}\n")
    sandbox.mounts()


def on_host(launcher, *argv):
    """Runs what `run` sends, as the shell of a host would."""
    launcher("run", *argv, train=[0])
    command = remote(launcher.calls[-1])
    return launcher.sandbox.run("bash", "-c", command, cwd=launcher.sandbox.path)


def test_host_runs_the_trainer(launcher):
    """The second shell for real, newlines too: arguments, environment, exit code, log, output."""
    sandbox = launcher.sandbox
    (sandbox.bin / "sleep").unlink()  # the real second, for the last lines of output
    host(sandbox, f'printf "%s\\0" "$@" > {sandbox.path}/argv; echo "A is $A"; exit 42')
    awkward = [*AWKWARD, "two\nlines"]
    done = on_host(launcher, "--env", "A=x $y 'z'", "--", *awkward)
    assert done.returncode == 42
    argv = (sandbox.path / "argv").read_text().split("\0")[:-1]
    assert argv == ["-m", "ssjax.train", *awkward, "--config.workdir=/mnt/ssjax/run"]
    assert not (sandbox.path / "ssjax" / "broken").exists()
    assert sandbox.lines("ssjax-train.log") == ["A is x $y 'z'"]
    assert done.stdout == "A is x $y 'z'\n"


def two_on_host(launcher, first, second):
    """Starts two commands on a host, the second while the first trains; returns both codes."""
    path = launcher.sandbox.path
    wait = f"until [[ -e {path}/go ]]; do read -t 0.01 < <(:); done"
    host(launcher.sandbox, f"echo started >> {path}/starts; {wait}; exit 42")
    commands = []
    for argv in (first, second):
        launcher("run", *argv, train=[0])
        commands.append(shlex.quote(remote(launcher.calls[-1])))
    log = f"{path}/ssjax-train.log"
    done = launcher.sandbox.run(
        "bash",
        "-c",
        f"""bash -c {commands[0]} & first=$!
until [[ -e {path}/starts ]]; do read -t 0.01 < <(:); done
bash -c {commands[1]} & second=$!
until grep -q 'under way' {log}; do read -t 0.01 < <(:); done
touch {path}/go
wait $first; echo "first $?" >> {path}/codes
wait $second; echo "second $?" >> {path}/codes""",
        cwd=path,
    )
    assert done.returncode == 0, done
    return launcher.sandbox.lines("codes")


def test_same_command_joins_the_run_on_a_host(launcher):
    assert two_on_host(launcher, TRAIN, TRAIN) == ["first 42", "second 42"]
    assert launcher.sandbox.lines("starts") == ["started"]


def test_other_command_is_refused_while_one_runs(launcher):
    other = (*TRAIN, "--config.seed=1")
    assert two_on_host(launcher, TRAIN, other) == ["first 42", "second 2"]
    assert launcher.sandbox.lines("starts") == ["started"]


def test_host_starts_again_after_a_run(launcher):
    host(launcher.sandbox, f"echo started >> {launcher.sandbox.path}/starts")
    assert on_host(launcher, *TRAIN).returncode == 0
    assert on_host(launcher, *TRAIN, "--config.seed=1").returncode == 0
    assert launcher.sandbox.lines("starts") == ["started"] * 2


def test_host_mounts_the_bucket_once(launcher):
    host(launcher.sandbox, "exit 0")
    for _ in range(2):
        assert on_host(launcher, *TRAIN).returncode == 0
    mounts = [call for call in launcher.sandbox.lines("mounts") if call.startswith("gcsfuse ")]
    assert len(mounts) == 1
    assert mounts[0].endswith(" my-bucket /mnt/ssjax")


def test_host_that_cannot_mount_fails_with_a_code_that_is_retried(launcher):
    host(launcher.sandbox, f"touch {launcher.sandbox.path}/trained")
    launcher.sandbox.mounts(*[2] * 5)
    done = on_host(launcher, *TRAIN)
    assert done.returncode == 1
    assert "cannot mount gs://my-bucket at /mnt/ssjax" in done.stdout
    assert not (launcher.sandbox.path / "trained").exists()


def test_host_without_setup_fails_with_a_code_that_is_retried(launcher):
    assert on_host(launcher, *TRAIN).returncode == 1


def test_stop_signals_the_trainer_alone(launcher):
    launcher("stop")
    pattern = shlex.split(remote(launcher.calls[-1]))[3].replace("[.]", r"\.")
    assert re.search(pattern, ".venv/bin/python -m ssjax.train --config x")
    assert not re.search(
        pattern, "bash launch/tpu_startup.sh follow .venv/bin/python -m ssjax.train"
    )


def test_create_hands_the_command_to_the_startup_script(launcher):
    done = launcher(
        "create",
        "--env=A=x y",
        "--ref=v1",
        "--copy-logs=/mnt/ssjax/logs",
        "--",
        *AWKWARD,
        states=["MISSING", "ACTIVE"],
        create=[0],
    )
    assert done.returncode == 0
    [metadata, from_file] = flags(launcher.calls[1], "--metadata", "--metadata-from-file")
    assert from_file == f"--metadata-from-file=startup-script={SCRIPT.parent}/tpu_startup.sh"
    # gcloud: ^DELIMITER^ at the start replaces the comma.
    delimiter, _, rest = metadata.removeprefix("--metadata=^").partition("^")
    values = dict(item.split("=", 1) for item in rest.split(delimiter))
    assert shlex.split(values.pop("ssjax-args")) == [
        *AWKWARD,
        "--config.workdir=/mnt/ssjax/run",
    ]
    assert shlex.split(values.pop("ssjax-env")) == ["A=x y"]
    assert values == {
        "ssjax-repo": SETTINGS["SSJAX_REPO"],
        "ssjax-ref": "v1",
        "ssjax-bucket": "my-bucket",
        "ssjax-copy-logs": "/mnt/ssjax/logs",
    }


# --- the command line ---


def error_of(done):
    """The one line of a refused command."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


NEEDS = [
    *((verb, name) for verb in VERBS for name in ("NAME", "ZONE")),
    ("create", "TYPE"),
    ("create", "REPO"),
    ("create", "WORKDIR"),
    ("setup", "REPO"),
    ("run", "WORKDIR"),
    ("babysit", "TYPE"),
    ("babysit", "REPO"),
    ("babysit", "WORKDIR"),
]


@pytest.mark.parametrize(("verb", "missing"), NEEDS)
def test_missing_value_names_itself(launcher, verb, missing):
    env = {name: value for name, value in SETTINGS.items() if name != f"SSJAX_{missing}"}
    argv = TRAIN if verb in ("create", "run", "babysit") else ()
    line = error_of(launcher(verb, *argv, env=env))
    assert f"--{missing.lower()}" in line
    assert f"SSJAX_{missing}" in line
    assert launcher.calls == []


@pytest.mark.parametrize("accelerator", ["v3-8", "v5litepod", "v5litepod-x", "h100", "tpu7x-8"])
@pytest.mark.parametrize("verb", ["create", "babysit"])
def test_unknown_accelerator_makes_no_call(launcher, accelerator, verb):
    argv = TRAIN if verb == "babysit" else ()
    line = error_of(launcher(verb, f"--type={accelerator}", *argv))
    for family in ("v4-", "v5litepod-", "v5p-", "v6e-"):
        assert family in line
    assert launcher.calls == []


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_runtime_versions(launcher, accelerator, runtime):
    done = launcher("create", "--type", accelerator, "--dry-run")
    assert f"--accelerator-type={accelerator} --runtime-version={runtime}" in done.stdout


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "no verb"),
        (["destroy"], "destroy"),
        (["create", "--nmae=x"], "--nmae"),
        (["create", "--name"], "--name"),
        (["create", "--spot", "--reserved"], "--reserved"),
        (["create", "--spot=yes"], "--spot"),
        (["create", "extra"], "extra"),
        (["create", "--poll=soon"], "POLL"),
        (["create", "--max-restarts", "-1"], "MAX_RESTARTS"),
        (["run"], "training arguments"),
        (["babysit"], "training arguments"),
        (["setup", *TRAIN], "no training arguments"),
        (["run", "--env", "NOVALUE", *TRAIN], "--env"),
        (["logs", "--worker=first"], "--worker"),
        (["run", "--", "--config.workdir=runs/x"], "--workdir"),
        (["setup", "--bucket=gs://my-bucket"], "--bucket"),
        (["setup", "--bucket=my bucket"], "--bucket"),
        (["create", "--copy-logs=gs://my-bucket/logs", *TRAIN], "--copy-logs"),
    ],
)
def test_bad_command_lines(launcher, argv, named):
    assert named in error_of(launcher(*argv))
    assert launcher.calls == []


@pytest.mark.parametrize("verb", VERBS)
def test_bucket_url_as_workdir_makes_no_call(launcher, verb):
    argv = TRAIN if verb in ("create", "run", "babysit") else ()
    line = error_of(launcher(verb, *argv, env=SETTINGS | {"SSJAX_WORKDIR": "gs://my-bucket/run"}))
    assert all(part in line for part in ("--workdir", "--bucket", "/mnt/ssjax", "docs/launch.md"))
    assert error_of(launcher(verb, "--workdir=gs://my-bucket/run", *argv)) == line
    assert launcher.calls == []


def test_flags_win_over_variables(launcher):
    launcher("delete", "--name=other", "--zone", "europe-west4-b", delete=[0])
    assert launcher.calls[0][4:6] == ["other", "--zone=europe-west4-b"]


def test_project_may_be_left_to_gcloud(launcher):
    env = {name: value for name, value in SETTINGS.items() if name != "SSJAX_PROJECT"}
    launcher("delete", env=env, delete=[0])
    assert flags(launcher.calls[0], "--project") == []


def test_flags_for_gcloud_are_passed_on(launcher):
    done = launcher(
        "babysit",
        "--gcloud-create=--internal-ips",
        "--gcloud-create",
        "--network=my-net",
        "--gcloud-ssh=--internal-ip",
        *TRAIN,
        "--dry-run-is-for-the-trainer",
        states=["MISSING", "ACTIVE"],
        create=[0],
        setup=[0],
        train=[0],
    )
    assert done.returncode == 0
    assert flags(launcher.calls[1], "--internal-ips", "--network") == [
        "--internal-ips",
        "--network=my-net",
    ]
    assert all("--internal-ip" in call for call in launcher.calls[3:])


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_calls_nothing(launcher, verb):
    argv = TRAIN if verb in ("create", "run", "babysit") else ()
    done = launcher(verb, "--dry-run", *argv)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert launcher.calls == []
    assert launcher.sleeps == []
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith("gcloud compute tpus ") for line in lines)


def test_dry_run_of_babysit_shows_every_step(launcher):
    lines = launcher("babysit", "--dry-run", *TRAIN).stdout.splitlines()
    assert [step(shlex.split(line)[1:]) for line in lines] == [
        "describe",
        "create",
        "describe",
        "setup",
        "train",
    ]


def test_dry_run_shows_the_mount(launcher):
    lines = launcher("babysit", "--dry-run", *TRAIN).stdout.splitlines()
    mount = "bash launch/tpu_startup.sh mount my-bucket || exit 1; "
    assert [mount in line for line in lines] == [False, False, False, True, True]
    done = launcher("babysit", "--dry-run", "--bucket=", *TRAIN)
    assert "mount" not in done.stdout.replace("/mnt/ssjax", "")


def test_help(launcher):
    for argv in (["--help"], ["help"], ["create", "--help"]):
        done = launcher(*argv, env={})
        assert done.returncode == 0
        assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


# --- the guide ---


def guide_commands():
    """Every command of docs/launch.md that starts with launch/tpu_vm.sh."""
    text = (ROOT / "docs" / "launch.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    exports = [line for line in lines if line.startswith("export SSJAX_")]
    commands = [line for line in lines if line.startswith("launch/tpu_vm.sh ")]
    return exports, commands


def test_guide_commands_parse(launcher):
    exports, commands = guide_commands()
    verbs = set()
    assert exports
    for command in commands:
        script, verb, rest = (*command.split(None, 2), "")[:3]
        verbs.add(verb)
        line = "\n".join([*exports, f"{script} {verb} --dry-run {rest}"])
        done = launcher.sandbox.run("bash", "-euc", line)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert verbs == set(VERBS)
    assert launcher.calls == []
