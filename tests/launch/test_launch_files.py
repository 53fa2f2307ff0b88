"""The start-up script, Slurm, GKE, SkyPilot and flag presets, each against stand-ins."""

import fcntl
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [
    *sorted(LAUNCH.glob("*.sh")),
    *sorted(Path(__file__).parent.glob("*.sh")),
    ROOT / ".ci" / "run",
]
ARGS = ["--config", "two words.py", "it's $HOME", "ünï;&", ""]


def wait_for(condition):
    """Waits until a condition holds, ten seconds at most."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened")


# --- start-up script ---

# Ends with the next line of `codes`; TERM is answered by 42, as the trainer does.
TRAINER = """#!/bin/bash
cd "$STAND_IN"
printf '%s\\0' "$@" >> argv; echo >> argv
echo "${PYTHONUNBUFFERED:-} ${EXTRA:-}" >> trainer_env
[[ -e /proc/self/fd/9 ]] && echo yes >> holds_lock
trap 'exit 42' TERM
code=$(head -n 1 codes); sed -i 1d codes
if [[ $code == wait ]]; then touch training; while :; do read -t 0.01 < <(:); done; fi
exit "$code"
"""


class Host:
    """A TPU host: stand-in metadata server, git and Python."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        path = sandbox.path
        sandbox.file("trainer", TRAINER)
        log = f'echo "$(basename "$0") $*" >> {path}/calls'
        sandbox.program(
            "curl",
            f'{log}; url=${{@: -1}}; cat "{path}/metadata/${{url##*/}}" 2> /dev/null || exit 22',
        )
        sandbox.program(
            "git",
            f'{log}; [[ $1 != clone ]] || {{ mkdir -p "$4/.git"; echo 1 > "$4/pyproject.toml"; }}',
        )
        sandbox.program(
            "python3",
            f"""{log}
case "$*" in
  "-m uv --version") test -e {path}/uv ;;
  *"pip install"*uv) touch {path}/uv ;;
  "-m uv venv"*) mkdir -p .venv/bin && cp {path}/trainer .venv/bin/python ;;
esac""",
        )
        self.environment = {
            "SSJAX_DIR": str(path / "code"),
            "SSJAX_LOG": str(path / "log"),
            "SSJAX_LOCK": str(path / "lock"),
        }
        self.metadata(repo="https://github.com/my-org/ssjax.git", ref="v1", args=shlex.join(ARGS))

    def metadata(self, **attributes):
        """Sets instance metadata."""
        for name, value in attributes.items():
            self.sandbox.file(f"metadata/ssjax-{name.replace('_', '-')}", value)

    def boot(self, *codes, **env):
        """Runs the start-up script; the trainer ends with these codes in turn."""
        (self.sandbox.path / "codes").write_text("".join(f"{code}\n" for code in codes))
        return self.sandbox.run(LAUNCH / "tpu_startup.sh", **(self.environment | env))

    @property
    def trained(self):
        """The arguments of every start of the trainer."""
        return [line.split("\0")[:-1] for line in self.sandbox.lines("argv")]

    def calls(self, start):
        """The calls that begin so."""
        return [line for line in self.sandbox.lines("calls") if line.startswith(start)]


@pytest.fixture
def host(sandbox):
    host = Host(sandbox)
    for name in ("curl", "git", "python3"):
        assert sandbox.where(name) == str(sandbox.bin / name)
    return host


def test_boot_fetches_builds_and_trains(host):
    code = host.sandbox.path / "code"
    done = host.boot(0)
    assert done.returncode == 0, host.sandbox.lines("log")
    assert host.calls("git") == [
        f"git clone --quiet https://github.com/my-org/ssjax.git {code}",
        f"git -C {code} fetch --quiet origin v1",
        f"git -C {code} checkout --quiet --detach FETCH_HEAD",
    ]
    assert host.calls("python3") == [
        "python3 -m uv --version",
        "python3 -m pip install --quiet --user uv",
        "python3 -m uv venv --quiet --python 3.12 .venv",
        "python3 -m uv pip install --quiet --python .venv/bin/python -e .[tpu,scores]",
    ]
    assert host.trained == [["-m", "ssjax.train", *ARGS]]
    assert host.sandbox.lines("trainer_env") == ["1 "]
    assert host.sandbox.lines("holds_lock") == []
    assert all("-H Metadata-Flavor: Google http://metadata" in call for call in host.calls("curl"))
    assert "exit code 0" in host.sandbox.lines("log")[-1]


def test_boot_restarts_with_growing_pauses(host):
    done = host.boot(42, 1, 42, 42, 0, SSJAX_BACKOFF="5", SSJAX_MAX_BACKOFF="15")
    assert done.returncode == 0
    assert host.trained == [["-m", "ssjax.train", *ARGS]] * 5
    assert host.sandbox.lines("sleeps") == ["5", "10", "15", "15"]


@pytest.mark.parametrize("code", [2, 3, 4])
def test_boot_does_not_retry_what_would_end_so_again(host, code):
    assert host.boot(code, 0).returncode == code
    assert len(host.trained) == 1
    assert host.sandbox.lines("sleeps") == []


def test_boot_gives_up(host):
    assert host.boot(42, 1, 7, SSJAX_MAX_RESTARTS="2").returncode == 7
    assert "gave up after 2 restarts" in host.sandbox.lines("log")[-1]


def test_long_training_clears_the_count_of_restarts(host):
    done = host.boot(42, 42, 42, 0, SSJAX_MAX_RESTARTS="1", SSJAX_RESET_AFTER="0")
    assert done.returncode == 0


def test_second_copy_refuses(host):
    with (host.sandbox.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert host.boot(0).returncode == 75
    assert "another copy" in host.sandbox.lines("log")[-1]
    assert host.calls("git") == []
    assert host.trained == []


def test_second_boot_builds_nothing(host):
    host.boot(0)
    built = host.calls("python3")
    assert host.boot(0).returncode == 0
    assert host.calls("python3") == built
    assert len(host.calls("git clone")) == 1
    (host.sandbox.path / "code" / "pyproject.toml").write_text("new dependencies")
    assert host.boot(0).returncode == 0
    assert len(host.calls("python3 -m uv pip install")) == 2


def test_failed_installation_is_tried_again(host):
    script = (host.sandbox.bin / "python3").read_text()
    host.sandbox.program("python3", f'[[ "$*" == *tpu* ]] && exit 3\n{script}')
    assert host.boot(0).returncode == 3
    host.sandbox.program("python3", script)
    assert host.boot(0).returncode == 0
    assert host.trained == [["-m", "ssjax.train", *ARGS]]


def test_variables_win_over_metadata(host):
    done = host.boot(
        0,
        SSJAX_REPO="here",
        SSJAX_REF="v2",
        SSJAX_ARGS="a\\ b",
        SSJAX_ENV="EXTRA=x\\ y",
        SSJAX_BUCKET="",
        SSJAX_COPY_LOGS="",
    )
    assert done.returncode == 0
    assert host.calls("curl") == []
    assert host.trained == [["-m", "ssjax.train", "a b"]]
    assert host.sandbox.lines("trainer_env") == ["1 x y"]
    assert host.calls("git clone --quiet here")


@pytest.mark.parametrize("name", ["repo", "ref", "args"])
def test_missing_setting_names_itself(host, name):
    (host.sandbox.path / "metadata" / f"ssjax-{name}").unlink()
    assert host.boot(0).returncode == 2
    assert f"SSJAX_{name.upper()}" in host.sandbox.lines("log")[-1]
    assert host.trained == []


def test_metadata_server_that_does_not_answer_ends_the_boot(host):
    host.sandbox.program("curl", "exit 7")
    done = host.boot(0)
    assert done.returncode == 1
    assert "ssjax-repo" in done.stderr
    assert host.trained == []


def test_log_is_copied_and_may_fail(host):
    logs = host.sandbox.path / "runs" / "logs"
    host.metadata(copy_logs=str(logs))
    host.sandbox.program("hostname", "echo host-3")
    assert host.boot(42, 0).returncode == 0
    assert (logs / "host-3.log").read_text() == (host.sandbox.path / "log").read_text()
    host.metadata(copy_logs=f"{host.sandbox.path}/log/below-a-file")
    assert host.boot(42, 0).returncode == 0
    assert "could not be copied" in host.sandbox.lines("log")[-1]


MOUNT = [
    f"sudo install -d -o {os.getuid()} -g {os.getgid()} /mnt/ssjax",
    "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 my-bucket /mnt/ssjax",
]


def test_boot_mounts_the_bucket_once(host):
    host.metadata(bucket="my-bucket")
    host.sandbox.mounts()
    assert host.boot(42, 0).returncode == 0
    assert host.boot(0).returncode == 0
    assert host.sandbox.lines("mounts") == MOUNT
    assert len(host.trained) == 3
    assert host.sandbox.lines("holds_lock") == []


def test_boot_tries_again_after_a_failed_mount(host):
    """And neither trains nor copies the log while the bucket is not there."""
    logs = host.sandbox.path / "logs"
    host.metadata(bucket="my-bucket", copy_logs=str(logs))
    host.sandbox.mounts(1, 1)
    host.sandbox.program("sleep", f'echo "$1" >> {host.sandbox.path}/sleeps; [[ ! -e {logs} ]]')
    assert host.boot(0).returncode == 0
    assert host.sandbox.lines("mounts") == MOUNT * 3
    assert host.sandbox.lines("sleeps") == ["10", "20"]
    assert len(host.trained) == 1
    failed = [line for line in host.sandbox.lines("log") if "cannot mount" in line]
    assert len(failed) == 2
    assert failed[0].endswith("cannot mount gs://my-bucket at /mnt/ssjax")


def test_boot_that_can_never_mount_gives_up(host):
    host.metadata(bucket="my-bucket")
    host.sandbox.mounts(1, 1)
    assert host.boot(SSJAX_MAX_RESTARTS="1").returncode == 1
    assert host.trained == []


def test_dead_mount_is_replaced_before_a_restart(host):
    host.metadata(bucket="my-bucket")
    host.sandbox.mounts()
    host.sandbox.program("sleep", f"rm {host.sandbox.path}/mounted")
    host.sandbox.program("stat", 'echo "stat: $1: Transport endpoint is not connected" >&2; exit 1')
    assert host.boot(42, 0).returncode == 0
    assert host.sandbox.lines("mounts") == ["sudo umount --lazy /mnt/ssjax", *MOUNT] * 2


def test_missing_gcsfuse_is_installed(host):
    if host.sandbox.where("gcsfuse"):
        pytest.skip("gcsfuse is installed here")
    host.metadata(bucket="my-bucket")
    host.sandbox.file("metadata/apt-key.gpg", "the key\n")
    host.sandbox.mounts(installed=False)
    host.sandbox.program("lsb_release", "echo jammy")
    assert host.boot(0).returncode == 0
    calls = host.sandbox.lines("mounts")
    assert [call for call in calls if "apt-get install" in call][0].endswith(" gcsfuse")
    assert calls[-2:] == MOUNT
    key, source = host.sandbox.lines("as_root")
    assert key == "the key"
    assert source.endswith("https://packages.cloud.google.com/apt gcsfuse-jammy main")


@pytest.mark.parametrize(("failures", "code"), [(0, 0), (4, 0), (5, 1)])
def test_mount_alone_tries_five_times(sandbox, failures, code):
    """What `tpu_vm.sh setup` and `run` call first."""
    sandbox.mounts(*[3] * failures)
    done = sandbox.run(LAUNCH / "tpu_startup.sh", "mount", "my-bucket")
    assert done.returncode == code
    assert sandbox.lines("mounts") == MOUNT * min(failures + 1, 5)
    assert sandbox.lines("sleeps") == ["10"] * min(failures, 4)
    assert done.stdout.count("cannot mount gs://my-bucket at /mnt/ssjax\n") == failures


def terminate_while_training(host):
    """Boots, sends TERM to the script while the trainer works; returns the exit code."""
    (host.sandbox.path / "codes").write_text("wait\n0\n")
    script = subprocess.Popen(
        [LAUNCH / "tpu_startup.sh"], env=host.sandbox.env | host.environment, cwd=ROOT
    )
    try:
        wait_for((host.sandbox.path / "training").exists)
        script.send_signal(signal.SIGTERM)
        return script.wait(timeout=10)
    finally:
        script.kill()


def test_shutdown_reaches_the_trainer_and_is_no_restart(host):
    assert terminate_while_training(host) == 42
    assert len(host.trained) == 1
    assert host.sandbox.lines("sleeps") == []


def test_environment_alone(host):
    """What `tpu_vm.sh setup` and SkyPilot call: no metadata, no code fetched, no training."""
    script = host.sandbox.file("copy/launch/startup", (LAUNCH / "tpu_startup.sh").read_text())
    host.sandbox.file("copy/pyproject.toml", "")
    assert host.sandbox.run(script, "environment").returncode == 0
    assert (host.sandbox.path / "copy/.venv/bin/python").exists()
    assert [call for call in host.sandbox.lines("calls") if "python3" not in call] == []
    assert host.sandbox.run(script, "nonsense").returncode == 2


# --- Slurm ---


@pytest.fixture
def slurm(sandbox):
    """srun ends with the code in `code`, or with 42 once scancel was called."""
    path = sandbox.path
    log = f'echo "$(basename "$0") $*" >> {path}/calls'
    sandbox.program(
        "srun",
        f"""printf '%s\\0' "$@" > {path}/argv
code=$(cat {path}/code); touch {path}/training
[[ $code == wait ]] || exit "$code"
until [[ -e {path}/cancelled ]]; do read -t 0.01 < <(:); done
exit 42""",
    )
    sandbox.program("scontrol", log)
    sandbox.program("scancel", f"{log}; touch {path}/cancelled")
    sandbox.env["SLURM_JOB_ID"] = "17"
    return sandbox


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 137])
def test_slurm_requeues_after_42_only(slurm, code):
    (slurm.path / "code").write_text(str(code))
    done = slurm.run(LAUNCH / "slurm.sh", *ARGS)
    assert done.returncode == code
    argv = (slurm.path / "argv").read_text().split("\0")[:-1]
    assert argv == ["--kill-on-bad-exit=0", ".venv/bin/python", "-m", "ssjax.train", *ARGS]
    assert slurm.lines("calls") == (["scontrol requeue 17"] if code == 42 else [])


def test_any_verb_runs_on_all_hosts(sandbox):
    sandbox.program("gcloud", f"printf '%s\\0' \"$@\" > {sandbox.path}/argv")
    assert (
        sandbox.run(LAUNCH / "verb.sh", "my-tpu", "zone", "verify", "--workdir=x").returncode == 2
    )
    given = ["--mesh", "1,1,4", *ARGS]
    assert sandbox.run(LAUNCH / "verb.sh", "my-tpu", "zone", "verify", *given).returncode == 0
    *where, command = (sandbox.path / "argv").read_text().split("\0")[:-1]
    assert where == ["compute", "tpus", "tpu-vm", "ssh", "my-tpu", "--zone=zone", "--worker=all"]
    run = shlex.split(command.removeprefix("--command=cd ssjax && "))
    assert run == [".venv/bin/python", "-m", "ssjax.verify", *given]


def test_slurm_forwards_term_and_requeues(slurm):
    (slurm.path / "code").write_text("wait")
    script = subprocess.Popen([LAUNCH / "slurm.sh", *ARGS], env=slurm.env, cwd=ROOT)
    try:
        wait_for((slurm.path / "training").exists)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=10) == 42
    finally:
        script.kill()
        (slurm.path / "cancelled").touch()
    assert slurm.lines("calls") == ["scancel --signal=TERM 17", "scontrol requeue 17"]


def test_slurm_asks_for_one_process_a_gpu_and_a_signal():
    """jax.distributed gives each Slurm process the device numbered by SLURM_LOCALID."""
    text = (LAUNCH / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options
    assert options["signal"] == "B:TERM@120"
    assert options["open-mode"] == "append"
    assert "requeue" in options
    head = text[: text.index("set -euo")].splitlines()
    assert all(line.startswith("#") for line in head), "Slurm stops reading at the first command"


# --- GKE and SkyPilot ---


def read_yaml(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def test_jobset_is_one_whole_slice():
    jobset = read_yaml("jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    assert job["parallelism"] == job["completions"]
    assert job["completions"] * chips == math.prod(int(n) for n in topology.split("x"))


def test_jobset_mounts_the_bucket_of_the_workdir():
    job = read_yaml("jobset.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]
    template = job["template"]
    assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    [volume] = template["spec"]["volumes"]
    assert volume["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
            "bucketName": "my-bucket",
            "mountOptions": "implicit-dirs,metadata-cache-ttl-secs=0",
        },
    }
    [container] = template["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/ssjax"}]
    assert container["args"][-1].startswith("--config.workdir=/mnt/ssjax/")


def test_jobset_retries_all_but_bad_input():
    spec = read_yaml("jobset.yaml")["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    assert spec["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    [container] = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2, 3, 4],
    }


@pytest.mark.parametrize(
    ("git", "pip", "trainer", "expected"), [(0, 0, 42, 42), (2, 0, 0, 1), (0, 2, 0, 1)]
)
def test_jobset_container(sandbox, git, pip, trainer, expected):
    """Runs the container's command: its code is the trainer's; earlier failures are never 2."""
    job = read_yaml("jobset.yaml")["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    code = sandbox.path / "code"
    sandbox.program("git", f'[[ $1 != clone ]] || mkdir "$4"; exit {git}')
    sandbox.program(
        "python",
        f"""[[ $2 == pip ]] && exit {pip}
printf '%s\\n' "$PWD" "$@" > {sandbox.path}/argv; exit {trainer}""",
    )
    command = [word.replace("/opt/ssjax", str(code)) for word in container["command"]]
    env = {item["name"]: item["value"] for item in container["env"]}
    done = sandbox.run(*command, *container["args"], **env)
    assert done.returncode == expected
    started = [str(code), "-m", "ssjax.train", *container["args"]]
    assert sandbox.lines("argv") == (started if expected == 42 else [])


def test_skypilot_task(sandbox):
    task = read_yaml("skypilot.yaml")
    assert task["workdir"] == "."
    resources = task["resources"]
    assert resources["use_spot"] is True
    assert resources["job_recovery"] == {"recover_on_exit_codes": [42]}
    assert "file_mounts" not in task  # its renames are not atomic
    assert task["envs"]["SSJAX_WORKDIR"].startswith("/mnt/ssjax/")
    assert task["setup"].split() == ["bash", "launch/tpu_startup.sh", "environment"]
    sandbox.file(
        ".venv/bin/python", f"#!/bin/bash\nprintf '%s\\n' \"$@\" > {sandbox.path}/argv; exit 42"
    )
    startup = f"printf '%s\\n' \"$@\" > {sandbox.path}/mounted; exit ${{MOUNT_CODE:-0}}"
    sandbox.file("launch/tpu_startup.sh", startup)
    done = sandbox.run("bash", "-c", task["run"], cwd=sandbox.path, MOUNT_CODE="1", **task["envs"])
    assert done.returncode == 1 and not (sandbox.path / "argv").exists()
    done = sandbox.run("bash", "-c", task["run"], cwd=sandbox.path, **task["envs"])
    assert done.returncode == 42
    assert sandbox.lines("mounted") == ["mount", "my-bucket"]
    assert sandbox.lines("argv")[:2] == ["-m", "ssjax.train"]
    assert f"--config.workdir={task['envs']['SSJAX_WORKDIR']}" in sandbox.lines("argv")


def test_skypilot_and_tpu_vm_name_the_same_runtime(sandbox):
    resources = read_yaml("skypilot.yaml")["resources"]
    accelerator = resources["accelerators"].removeprefix("tpu-")
    done = sandbox.run(
        LAUNCH / "tpu_vm.sh", "create", "--dry-run", "--name=n", "--zone=z", f"--type={accelerator}"
    )
    version = resources["accelerator_args"]["runtime_version"]
    assert f"--runtime-version={version}" in done.stdout.splitlines()[1]


# --- flag presets ---


@pytest.mark.parametrize("preset", ["vmem", "overlap"])
def test_flag_presets(sandbox, preset):
    done = sandbox.run(LAUNCH / "libtpu_flags.sh", preset)
    [line] = done.stdout.splitlines()
    assert all(re.fullmatch(r"--xla_\w+=\w+", flag) for flag in line.split())


def test_no_preset_by_default(sandbox):
    done = sandbox.run(LAUNCH / "libtpu_flags.sh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "UNMEASURED" in (LAUNCH / "libtpu_flags.sh").read_text()
    for file in LAUNCH.iterdir():
        if file.name != "libtpu_flags.sh":
            assert "LIBTPU_INIT_ARGS" not in file.read_text(), file.name


# --- all files ---


def test_named_files_exist():
    """Experiments, scripts and the extras that launch files and their guide speak of."""
    text = "".join(file.read_text() for file in LAUNCH.iterdir())
    text += (ROOT / "docs" / "launch.md").read_text()
    named = set(re.findall(r"\b(?:experiments|launch)/\w+\.(?:py|sh|yaml)", text))
    assert "launch/tpu_startup.sh" in named
    assert all((ROOT / name).is_file() for name in named)
    lists = re.findall(r"\.\[([\w,]+)\]", text)
    extras = {extra for each in lists for extra in each.split(",")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras == {"scores", "tpu"}
    assert extras <= project["optional-dependencies"].keys()


def test_workdirs_are_paths_below_one_mount_point():
    files = [*LAUNCH.iterdir(), ROOT / "docs" / "launch.md"]
    for file in files:
        text = file.read_text()
        assert set(re.findall(r"^readonly MOUNT_POINT=(\S+)", text, re.M)) <= {"/mnt/ssjax"}
        paths = re.findall(r"(?:workdir|WORKDIR|copy-logs)[= :]+([\w.]*[:/][\w/.-]+)", text)
        assert all(re.match("/(mnt/ssjax|shared)/", path) for path in paths), (file.name, paths)


def tool(name):
    """A linter beside this Python or on PATH; skips without it."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_clean(sandbox, script):
    for command in ([tool("shellcheck")], [tool("shfmt"), "-i", "2", "-ci", "-sr", "-d"]):
        done = sandbox.run(*command, script)
        assert done.returncode == 0, done.stdout + done.stderr
    assert script.stat().st_mode & 0o111, "not executable"
    assert "set -euo pipefail" in script.read_text()
