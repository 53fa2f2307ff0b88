"""What a run directory may be continued with."""

import dataclasses
import functools
import json
import shutil

import jax
import pytest
from small_tokenizers import TEXTS

from ssjax.config import Config, DataConfig, MeshConfig
from ssjax.data import lengths
from ssjax.data.choice import kept_tokenizer
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.errors import DamagedError, UserError
from ssjax.files import manifest
from ssjax.parallel import distributed
from ssjax.parallel.partitioning import make_mesh
from ssjax.training import batches, epochs, trainer
from ssjax.training.claim import about_run, claim_workdir
from ssjax.weights.base import read_config

SPLITS = ("train", "validation", "test")


@pytest.fixture
def data(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    for split in SPLITS:
        record = {"prompt": f"the {split}", "response": "of it"}
        (directory / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
    return directory


@functools.cache
def tokenizer(size):
    return train_tokenizer(TEXTS, size, symbols=())


def config_of(data, **changes):
    data = DataConfig(task="pairs", path=str(data), **changes)
    return dataclasses.replace(Config(), data=data)


@pytest.fixture(params=["begun", "saved"])
def workdir(request, tmp_path, data):
    """A run that has no checkpoint yet, or one."""
    directory, config = tmp_path / "run", config_of(data)
    claim_workdir(directory, config)
    tokenizer(360).save(directory)
    if request.param == "saved":
        step = directory / "checkpoints" / "3"
        step.mkdir(parents=True)
        manifest.write(step, about_run(config, tokenizer(360)))
        (directory / "data.json").unlink()  # what the checkpoint says counts
    return directory


def test_the_same_data_may_lie_anywhere(workdir, data, tmp_path):
    elsewhere = data.rename(tmp_path / "elsewhere")
    claim_workdir(workdir, config_of(elsewhere))
    assert json.loads((workdir / "config.json").read_text())["data"]["path"] == str(elsewhere)


@pytest.mark.parametrize("splits", [("train",), ("validation", "test")])
def test_other_data_is_refused_and_changes_nothing(workdir, data, splits):
    for split in splits:
        with (data / f"{split}.jsonl").open("a") as file:
            file.write("\n")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"other data: {', '.join(splits)} of {data} differ"):
        claim_workdir(workdir, config_of(data))
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_run_of_an_older_version_is_accepted_with_a_line(tmp_path, data, capsys):
    workdir = tmp_path / "run"
    claim_workdir(workdir, config_of(data))
    (workdir / "data.json").unlink()
    (workdir / "checkpoints" / "3" / "state").mkdir(parents=True)
    claim_workdir(workdir, config_of(data))
    assert "kept no digest of its data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "key", "value", "why"),
    [
        ("data", "batch_size", 3, "its batches and their order follow from it"),
        ("optimizer", "decay", "constant", "the state of its optimizer comes from those settings"),
        ("streams", "num_streams", 2, "its weights have that form"),
        ("loss", "main_weight", 0.5, "until now it minimised that loss"),
    ],
)
def test_another_setting_is_refused_with_the_reason(workdir, data, group, key, value, why):
    config = config_of(data)
    changed = dataclasses.replace(getattr(config, group), **{key: value})
    with pytest.raises(UserError, match=f"holds a run with {group}.{key}=.* not .*: {why}; "):
        claim_workdir(workdir, dataclasses.replace(config, **{group: changed}))


@pytest.mark.parametrize("workdir", ["saved"], indirect=True)
def test_a_run_may_end_elsewhere_and_accumulate_otherwise(workdir, data, capsys):
    """It is at step 3, and began with 400 to go to."""
    config = config_of(data)
    for num_steps, accumulation in ((3, 4), (900, 1)):
        train = dataclasses.replace(config.train, num_steps=num_steps, accumulation=accumulation)
        claim_workdir(workdir, dataclasses.replace(config, train=train))
        assert read_config(workdir).train == train
    said = capsys.readouterr().err
    assert "was to end at step 400 and now ends at 3; from here the learning rate follows" in said
    short = dataclasses.replace(config.train, num_steps=2)
    with pytest.raises(UserError, match="is at step 3, beyond train.num_steps=2; give at least"):
        claim_workdir(workdir, dataclasses.replace(config, train=short))


def test_the_first_process_measures_for_all(tmp_path, data, monkeypatch):
    """Which the others wait for: they find the lengths, and measure a few to compare."""
    config = config_of(
        data, packing=True, tokenizer_vocab_size=272, prepared_dir=str(tmp_path / "prepared")
    )
    trainer.prepare(tmp_path / "run", config, None)
    assert len(list((tmp_path / "prepared").glob("*/lengths/*.npz"))) == 1
    tokenizer, written = kept_tokenizer(tmp_path / "run"), []
    monkeypatch.setattr(lengths, "_write", lambda *each: written.append(each))
    batches.open_batches(config, tokenizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert not written


def test_epochs_become_steps_which_the_run_keeps(tmp_path, data, capsys):
    """Records that are dropped do not count; another number of epochs is another end."""
    rows = [{"prompt": f"the {i}", "response": "of it" * (1 + 99 * (i == 3))} for i in range(10)]
    (data / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config, workdir = config_of(data, batch_size=2, too_long="drop"), tmp_path / "run"
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, tokenizer_vocab_size=280, prepared_dir=str(tmp_path / "prepared")
        ),
    )
    for num_epochs, num_steps in ((3.0, 14), (3.0, 14), (0.5, 2)):
        train = dataclasses.replace(config.train, num_epochs=num_epochs)
        trainer.prepare(workdir, dataclasses.replace(config, train=train), None)
        assert read_config(workdir).train.num_steps == num_steps
        opened = epochs.kept(dataclasses.replace(config, train=train), workdir)
        assert opened.train.num_steps == num_steps
    said = capsys.readouterr().err
    assert "3 epochs of 9 records are 14 steps" in said
    assert "was to end at step 14 and now ends at 2" in said


def test_the_tokenizer_is_compared_by_content(workdir, data, tmp_path):
    copy = tmp_path / "tokenizer"
    kept_tokenizer(workdir).save(copy)
    claim_workdir(workdir, config_of(data, tokenizer=str(copy)))
    shutil.rmtree(copy)
    claim_workdir(workdir, config_of(data, tokenizer=str(copy)))  # the run has its own
    tokenizer(350).save(copy)
    with pytest.raises(UserError, match="another tokenizer than data.tokenizer"):
        claim_workdir(workdir, config_of(data, tokenizer=str(copy)))


@pytest.mark.parametrize("workdir", ["saved"], indirect=True)
def test_a_changed_tokenizer_is_damage(workdir, data):
    tokenizer(350).save(workdir)
    with pytest.raises(DamagedError, match=r"tokenizer.model is not as the checkpoints"):
        claim_workdir(workdir, config_of(data))


def test_processes_with_other_data_are_refused(data, monkeypatch):
    """`distributed.gather` stands in for two processes."""
    monkeypatch.setattr(distributed, "gather", lambda text: [text, text.replace("a", "b")])
    with pytest.raises(UserError, match="different data"):
        about_run(config_of(data), tokenizer(360))


def test_what_is_refused_may_be_started_again_with_other_settings(tmp_path, data):
    workdir = tmp_path / "run"
    wrong = config_of(data, tokenizer_vocab_size=5000, prepared_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match="5000 pieces is too large"):
        trainer.prepare(workdir, wrong, None)
    right = dataclasses.replace(wrong.data, tokenizer_vocab_size=272)
    trainer.prepare(workdir, dataclasses.replace(wrong, data=right), None)
    assert kept_tokenizer(workdir).vocab_size == 272
