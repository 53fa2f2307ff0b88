"""Metrics that go elsewhere: what is asked of each package, by the package where it is there."""

import json

import pytest

from ssjax import config as config_lib
from ssjax.errors import UserError
from ssjax.files import places
from ssjax.training import loggers


def make(name, workdir):
    config = config_lib.from_dict({"train": {"loggers": (name,)}})
    [logger] = loggers.make_loggers(config, workdir)
    return logger


def log_twice(name, workdir):
    """A run that is stopped after step 4 and goes on to step 8."""
    for begun in (0, 4):
        logger = make(name, workdir)
        logger.on_start(begun, 8)
        logger.on_step(begun + 4, {"loss": 1.5 + begun})
        logger.on_evaluation(begun + 4, {"validation_loss": 2.5})
        logger.on_summary(begun + 4, {"goodput": 0.5})
        logger.on_end(complete=begun == 4)


def test_a_package_that_is_missing_is_said_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.loggers wandb needs wandb; .*'ssjax\[wandb\]'"):
        loggers.require(["wandb"], tmp_path)
    loggers.require([], tmp_path)
    with pytest.raises(UserError, match="leave it out"):
        loggers.require(["tensorboard"], places.of("gs://bucket/run"))
    assert loggers.make_loggers(config_lib.Config(), None) == []


class Away:
    """A server that has gone."""

    def __getattr__(self, name):
        raise ConnectionError("no route to host\nand more")


def test_a_server_that_is_away_does_not_end_a_training(tmp_path, capsys):
    logger = make("wandb", tmp_path)
    logger._run = Away()
    logger.on_step(1, {"loss": 1.0})
    logger.on_step(2, {"loss": 1.0})
    logger.on_end(complete=True)
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "train.loggers wandb: no route to host; training goes on, metrics.jsonl has all"
    )


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    log_twice("tensorboard", tmp_path)
    files = list((tmp_path / "tensorboard").iterdir())
    assert files and all(b"validation_loss" in file.read_bytes() for file in files)


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore")
def test_mlflow_continues_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    log_twice("mlflow", tmp_path)
    client, [kept] = (
        mlflow.MlflowClient(),
        json.loads((tmp_path / "mlflow.json").read_text()).values(),
    )
    history = [(m.step, m.value) for m in client.get_metric_history(kept, "loss")]
    assert history == [(4, 1.5), (8, 5.5)]
    found = client.get_run(kept)
    assert found.info.status == "FINISHED" and found.data.params["train.num_steps"] == "400"
    assert found.data.metrics["goodput"] == 0.5


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_continues_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_twice("wandb", tmp_path)
    [kept] = json.loads((tmp_path / "wandb.json").read_text()).values()
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert runs and all(name.endswith(f"-{kept}") for name in runs)
