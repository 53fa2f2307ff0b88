"""Every verb that loads a model does with two devices what it does with one: `--mesh`."""

import json

import pytest
import verb_server

pytestmark = pytest.mark.stress  # programs of five verbs for two meshes

MESHES = ("1,1,2", "1,2,1")


def call(verb, *arguments):
    server = verb_server.server(
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        JAX_ENABLE_COMPILATION_CACHE="false",
    )
    ended = server.call(verb, arguments)
    assert ended.returncode == 0, ended.stderr
    return ended


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
    """result(verb, mesh): what a verb writes as JSON."""
    root = tmp_path_factory.mktemp("results")

    def of(verb, mesh, *arguments):
        path = root / f"{verb}-{mesh}.json"
        given = [f"--mesh={mesh}"] if mesh else []
        call(verb, f"--workdir={run}", f"--json={path}", *given, *arguments)
        return json.loads(path.read_text())

    return of


@pytest.mark.parametrize("mesh", MESHES)
def test_certificates_hold_alike(result, mesh):
    prompts = ("--num_prompts=4", "--max_new_tokens=12")
    one, many = (result("verify", each, *prompts) for each in ("", mesh))
    assert one["holds"] and many["holds"]
    identical = [
        {name: check["identical"] for name, check in each["checks"].items() if "identical" in check}
        for each in (one, many)
    ]
    assert identical[0] == identical[1] and set(identical[0].values()) == {4}


@pytest.mark.parametrize("mesh", MESHES)
def test_benchmarks_count_alike(result, mesh):
    arguments = ("--num_prompts=3", "--max_new_tokens=12", "--drafters=streams")
    counted = [
        [
            {name: row[name] for name in ("drafter", "identical", "tokens", "calls", "rouge1")}
            for row in result("benchmark", each, *arguments)["rows"]
        ]
        for each in ("", mesh)
    ]
    assert counted[1] == counted[0] and len(counted[0]) == 2


@pytest.mark.parametrize("mesh", MESHES)
def test_calibrations_predict_alike(result, mesh):
    arguments = ("--num_prompts=3", "--nodes=2", "--batch_sizes=1")
    found = [result("calibrate", each, *arguments)["calibrations"][0] for each in ("", mesh)]
    assert [each["device"].startswith("2 x ") for each in found] == [False, True]
    assert found[1]["acceptance"] == found[0]["acceptance"]


@pytest.mark.parametrize("mesh", MESHES)
def test_exports_are_the_same_files(run, tmp_path, mesh):
    for name, given in (("one", []), ("many", [f"--mesh={mesh}"])):
        call("export", f"--workdir={run}", "--format=hf", f"--target={tmp_path / name}", *given)
    one, many = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "many")
    )
    assert many == one and {"model.safetensors", "streams.safetensors"} <= set(one)
