"""What a validation decodes is what the checkpoint of that step decodes, opened afterwards."""

import dataclasses
import json
import types

import jax
import oracles
import pytest

from ssjax import config as config_lib
from ssjax import run as run_lib
from ssjax.decoding import decoder as decoder_lib
from ssjax.errors import UserError
from ssjax.evaluation import final, report
from ssjax.evaluation.decoded_validation import DecodedValidation
from ssjax.evaluation.kept_batches import Stopped
from ssjax.evaluation.prompts import examples_of
from ssjax.evaluation.teacher_forcing import compare_texts
from ssjax.metrics import text_metrics
from ssjax.models.lora import split_trainable
from ssjax.training import trainer
from ssjax.weights.load import load_trained, make_model

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
STEPS, PROMPTS = 9, 5


def settings(workdir, prepared):
    """Validated every three steps, each of them saved."""
    c = config_lib.default_config()
    config_lib.shrink(c)
    c.workdir, c.data.prepared_dir = str(workdir), str(prepared)
    c.streams.parent_rank = 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 0.02, 2
    c.train.num_steps, c.train.eval_every, c.train.eval_prompts = STEPS, 3, PROMPTS
    c.checkpoint.keep_latest, c.checkpoint.save_every = 9, 3
    c.checkpoint.best_by = "validation_tokens_per_call"
    c.decode.max_new_tokens, c.decode.batch_size = 12, 2
    return config_lib.from_config_dict(c)


class Counting(DecodedValidation):
    """Notes how many decode programs were traced by the end of each validation."""

    def __init__(self):
        super().__init__()
        self.compilations = []

    def __call__(self, trained, mesh):
        decoded = super().__call__(trained, mesh)
        self.compilations.append(decoder_lib.num_compilations())
        return decoded


def train(workdir, prepared, devices=1):
    decode = Counting()
    config = settings(workdir, prepared)
    before = decoder_lib.num_compilations()
    outcome = trainer.train(config, devices=jax.devices()[:devices], decode_validation=decode)
    assert outcome.complete
    return outcome, [count - before for count in decode.compilations]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prepared):
    return train(tmp_path_factory.mktemp("runs") / "one", prepared)


def told(workdir):
    """By step, what metrics.jsonl says of the drafts."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        r["step"]: (
            r["validation_tokens_per_call"],
            [share for name, share in r.items() if name.startswith("validation_acceptance_")],
        )
        for r in records
        if "validation_tokens_per_call" in r
    }


def by_hand(run):
    """Tokens per call and acceptance of the first validation prompts, every pass counted."""
    texts = [list(example.prompt_ids) for example in examples_of(run, "validation", PROMPTS)]
    assert len(texts) == PROMPTS
    passes = []
    for text in texts:
        [answer] = run.generate([text], calibration=False, batch_size=1)
        passes += zip(answer.completion.runs[1:], answer.completion.kept, strict=True)
    depth = range(1, run.config.streams.num_streams + 1)
    shares = [sum(kept >= d for _, kept in passes) / len(passes) for d in depth]
    return sum(emitted for emitted, _ in passes) / len(passes), shares


def test_the_numbers_are_those_of_the_checkpoint_opened_afterwards(trained):
    workdir = trained[0].trained.directory
    found = told(workdir)
    assert list(found) == [3, 6, 9]
    assert found == {step: by_hand(run_lib.load(workdir, str(step))) for step in found}
    assert len({tokens for tokens, _ in found.values()}) > 1  # else any weights would do
    best = max(found, key=lambda step: found[step][0])
    assert load_trained(workdir, "best").step == best


def test_nothing_is_compiled_after_the_first_validation(trained):
    first, *later = trained[1]
    assert first > 0 and later == [first, first]


def test_outputs_are_scored_as_the_task_scores_them(trained):
    """ROUGE of the answers of the last checkpoint, by the metric itself."""
    workdir = trained[0].trained.directory
    run = run_lib.load(workdir)
    examples = examples_of(run, "validation", PROMPTS)
    answers = run.generate([list(e.prompt_ids) for e in examples], calibration=False)
    scores = text_metrics.rouge([a.text for a in answers], [e.references for e in examples])
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    [last] = [r for r in records if "validation_loss" in r and r["step"] == STEPS]
    for name in ("rouge1", "rouge2", "rougeLsum"):
        assert last[f"validation_{name}"] == pytest.approx(sum(scores[name]) / PROMPTS)


@pytest.mark.stress
def test_an_evaluation_that_is_stopped_goes_on(trained, capsys):
    """Twice, each time after a batch; the figures are those of one that never was."""
    moment = changed(trained, eval={"max_records": 6, "batch_size": 2})
    run, written = run_lib.open_run(moment, trained[0].mesh), []
    for looks in ([False, True], [False, True], [False] * 9):
        asked = iter(looks)
        if looks[-1]:
            with pytest.raises(Stopped):
                final.evaluate(run, lambda asked=asked: next(asked), written.append)
        else:
            found = final.evaluate(run, lambda asked=asked: next(asked), written.append)
    assert written == [found] and not list(run.workdir.glob("evaluation.partial*"))
    never_stopped = report.evaluate(run, "test", 6, calibration=False, batch_size=2)
    assert found["batch_size"] == 2 and found["identical"] == found["prompts"] == 6
    for key in ("call_reduction", "example", "split"):
        assert found[key] == never_stopped[key]
    for way in ("plain", "speculative"):
        for key in ("tokens", "calls", "rouge1", "acceptance_by_depth"):
            assert found[way][key] == never_stopped[way][key]
    assert "evaluation goes on after 2 batches" in capsys.readouterr().err


def test_a_run_may_end_without_an_evaluation(trained, tmp_path, capsys):
    """Where it is turned off, and where the data has no such split."""
    pairs = {"task": "pairs", "path": str(tmp_path), "validation_share": 0.5}
    (tmp_path / "all.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 4)
    for groups, said in (
        ({"eval": {"enabled": False}}, "no evaluation: eval.enabled is False"),
        ({"data": pairs}, f"no evaluation: {tmp_path} has no test split; eval.split=validation"),
    ):
        moment = changed(trained, **groups)
        run = types.SimpleNamespace(config=moment.config, workdir=tmp_path)
        assert final.evaluate(run, lambda: False, None) is None
        assert said in capsys.readouterr().err


@pytest.mark.stress
def test_on_a_mesh_the_numbers_are_those_of_one_device(trained, prepared, tmp_path):
    """The same weights, decoded on two devices: read from the run of one."""
    outcome, compilations = train(tmp_path / "two", prepared, devices=2)
    assert len(set(compilations)) == 1 and len(compilations) == 3
    found = told(tmp_path / "two")
    assert found == {step: by_hand(run_lib.load(tmp_path / "two", str(step))) for step in found}
    run = run_lib.open_run(outcome.trained, outcome.mesh)
    alone = run_lib.load(tmp_path / "two")
    assert run.decoder.mesh.size == 2
    assert compare_texts(run, PROMPTS) == compare_texts(alone, PROMPTS)


def test_texts_are_compared_on_the_same_prompts(trained):
    outcome, _ = trained
    run = run_lib.open_run(outcome.trained, outcome.mesh)
    compared = compare_texts(run, PROMPTS)
    assert compared["prompts"] == PROMPTS
    tokens, shares = told(outcome.trained.directory)[STEPS]
    assert compared["decoded"]["tokens_per_call"] == tokens
    assert compared["decoded"]["acceptance_by_depth"] == shares
    parts = compared["by_context"]
    for name in ("teacher_forced", "decoded"):
        assert sum(part[name]["passes"] for part in parts) <= compared[name]["passes"]
    assert parts and compare_texts(run, 0) is None


@pytest.mark.stress
@pytest.mark.parametrize("mode", ["shared", "lossless"])
def test_adapters_that_change_compile_nothing_anew(trained, mode):
    """Folded in one mode, beside the weights in the other: opened anew at every validation."""
    moment = changed(trained, adaptation={"mode": mode, "rank": 2})
    model = make_model(moment.config, moment.tokenizer)
    trainable, frozen = split_trainable(
        oracles.random_params(model, seed=1), moment.config.adaptation
    )
    decode, found, moments = Counting(), [], []
    for scale in (0.1, 3.0, 0.1):
        weights = jax.tree.map(lambda x, scale=scale: scale * x, trainable)
        moments.append(dataclasses.replace(moment, trainable=weights, frozen=frozen))
        found.append(decode(moments[-1], trained[0].mesh))
    assert len(set(decode.compilations)) == 1
    assert found[0] == found[2] != found[1]
    for decoded, now in zip(found, moments, strict=True):
        numbers = decoded.tokens_per_call, list(decoded.acceptance_by_depth)
        assert numbers == by_hand(run_lib.open_run(now))


def changed(trained, **groups):
    """The run with some settings changed."""
    config = trained[0].trained.config
    replaced = {k: dataclasses.replace(getattr(config, k), **v) for k, v in groups.items()}
    return dataclasses.replace(trained[0].trained, config=dataclasses.replace(config, **replaced))


def test_without_drafts_or_prompts_nothing_is_decoded(trained):
    """Not even opened: a model without streams has nothing to decode with."""
    mesh = trained[0].mesh
    for groups in (
        {"train": {"eval_prompts": 0}},
        {"streams": {"num_streams": 0}},
        {"decode": {"drafter": "plain"}},
    ):
        assert DecodedValidation()(changed(trained, **groups), mesh) is None


def test_weights_that_are_not_finite_measure_nothing(trained, capsys):
    broken = jax.tree.map(lambda x: x * float("nan"), trained[0].trained.trainable)
    broken = dataclasses.replace(trained[0].trained, trainable=broken)
    assert DecodedValidation()(broken, trained[0].mesh) is None
    assert "validation prompt 1: the model's output is not finite" in capsys.readouterr().err


def test_prompts_that_cannot_be_decoded_end_only_a_run_that_is_judged_by_them(
    trained, monkeypatch, capsys
):
    def refuse(*_):
        raise UserError("no room")

    monkeypatch.setattr(
        "ssjax.evaluation.decoded_validation.open_run",
        lambda *_: types.SimpleNamespace(config=None),
    )
    monkeypatch.setattr(DecodedValidation, "_measure", refuse)
    mesh = trained[0].mesh
    with pytest.raises(UserError, match="no room"):
        DecodedValidation()(trained[0].trained, mesh)
    decode = DecodedValidation()
    by_loss = changed(trained, checkpoint={"best_by": "validation_loss"})
    assert decode(by_loss, mesh) is decode(by_loss, mesh) is None
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["validation prompts are not decoded: no room"]
