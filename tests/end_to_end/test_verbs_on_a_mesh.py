"""Every verb that loads a model does with two devices what it does with one, of one process or of
two: `--mesh` and `--distributed`."""

import functools
import json
import socket
from concurrent import futures

import pytest
import verb_server

pytestmark = pytest.mark.stress  # programs of seven verbs for two meshes

TENSOR, HOSTS = "1,1,2", "two hosts"  # of the latter: weights divided over two processes
WHERE = (TENSOR, HOSTS)


@functools.cache
def host(number):
    """A server with two devices; with a number one of the hosts, which have a device each."""
    devices = 2 if number is None else 1
    return verb_server.server(
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        JAX_ENABLE_COMPILATION_CACHE="false",
        HOST=str(number),
    )


def call(verb, *arguments, where=""):
    if where != HOSTS:
        given = [f"--mesh={where}"] if where else []
        ended = host(None).call(verb, [*arguments, *given])
        assert ended.returncode == 0, ended.stderr
        return ended
    with socket.socket() as free:
        free.bind(("localhost", 0))
        join = f"--distributed=localhost:{free.getsockname()[1]},2"

    def on(number):
        own = ["--mesh=1,2,1", f"{join},{number}"]
        return host(number).call(verb, [*arguments, *own], limit=500)

    with futures.ThreadPoolExecutor(2) as threads:
        first, second = threads.map(on, (0, 1))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    # Only the first process speaks, and XLA's own library.
    assert not [line for line in second.stdout.splitlines() if not line.startswith("[Gloo]")]
    return first


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run trained with FSDP, which decodes with its heads divided."""
    root = tmp_path_factory.mktemp("mesh")
    data = [f"--config.data.prepared_dir={root / 'data'}", "--config.data.batch_size=4"]
    steps = ["--config.train.num_steps=8", "--config.train.eval_every=8"]
    where = [f"--config.workdir={root / 'run'}", "--config.mesh.data=1", "--config.mesh.fsdp=2"]
    call("train", "--config=experiments/dialogsum.py:smoke", *data, *steps, *where)
    return root / "run"


@pytest.fixture(scope="module")
def result(run, tmp_path_factory):
    """result(verb, where, ...): what a verb writes as JSON."""
    root = tmp_path_factory.mktemp("results")

    @functools.cache
    def of(verb, where, *arguments):
        path = root / f"{verb}-{where}.json"
        call(verb, f"--workdir={run}", f"--json={path}", *arguments, where=where)
        return json.loads(path.read_text())

    return of


@pytest.mark.parametrize("where", WHERE)
def test_certificates_hold_alike(result, where):
    prompts = ("--num_prompts=4", "--max_new_tokens=12")
    one, many = (result("verify", each, *prompts) for each in ("", where))
    assert one["holds"] and many["holds"]
    identical = [
        {name: check["identical"] for name, check in each["checks"].items() if "identical" in check}
        for each in (one, many)
    ]
    assert identical[0] == identical[1] and set(identical[0].values()) == {4}


@pytest.mark.parametrize("where", WHERE)
def test_evaluations_are_alike(result, where):
    arguments = ("--max_records=4", "--max_new_tokens=12")
    one, many = (result("evaluate", each, *arguments) for each in ("", where))
    names = ("tokens", "calls", "acceptance_by_depth", "rouge1")
    counted = [
        (each["identical"], {name: each["speculative"][name] for name in names})
        for each in (one, many)
    ]
    assert counted[0] == counted[1] and counted[0][0] == 4


@pytest.mark.parametrize("where", WHERE)
def test_benchmarks_count_alike(result, where):
    arguments = ("--num_prompts=3", "--max_new_tokens=12", "--drafters=streams")
    counted = [
        [
            {name: row[name] for name in ("drafter", "identical", "tokens", "calls", "rouge1")}
            for row in result("benchmark", each, *arguments)["rows"]
        ]
        for each in ("", where)
    ]
    assert counted[1] == counted[0] and len(counted[0]) == 2


@pytest.mark.parametrize("where", WHERE)
def test_calibrations_predict_alike(result, where):
    arguments = ("--num_prompts=3", "--nodes=2", "--batch_sizes=1")
    found = [result("calibrate", each, *arguments)["calibrations"][0] for each in ("", where)]
    assert [each["device"].startswith("2 x ") for each in found] == [False, True]
    assert found[1]["acceptance"] == found[0]["acceptance"]


@pytest.mark.parametrize("where", WHERE)
def test_exports_are_the_same_files(run, tmp_path, where):
    for name in ("", where):
        target = f"--target={tmp_path / (name or 'one')}"
        call("export", f"--workdir={run}", "--format=hf", target, where=name)
    one, many = (files(tmp_path / name) for name in ("one", where))
    assert many == one and {"model.safetensors", "streams.safetensors"} <= set(one)
    # Read again slice by slice, and written as a directory of ours.
    for name in ("", where):
        target = tmp_path / f"converted-{name or 'one'}"
        told = call("convert", f"--source={tmp_path / 'one'}", f"--target={target}", where=name)
        assert "digest" in told.stdout
    one, many = (files(tmp_path / f"converted-{name}") for name in ("one", where))
    assert {**many, "config.json": 0} == {**one, "config.json": 0}  # it holds the target's name


def files(directory):
    """Those beside Orbax's own, whose names say who wrote them; base.json has the digest."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
