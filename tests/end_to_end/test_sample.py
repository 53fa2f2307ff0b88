"""A model trained on the generated sample: every test record, plain against speculative."""

import subprocess
import sys
from pathlib import Path

import pytest

import ssjax
from ssjax.data import builders, pipeline
from ssjax.decoding.decoder import num_compilations
from ssjax.decoding.drafters import BestFirstDrafter, PlainDrafter, StaticDrafter, Way
from ssjax.decoding.request import make_request
from ssjax.decoding.tree import StaticTree
from ssjax.evaluation import report

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.stress


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A quarter of the default training: enough for drafts that are often, not always, right."""
    directory = tmp_path_factory.mktemp("sample")
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "ssjax.train",
            "--config=experiments/dialogsum.py",
            f"--config.workdir={directory / 'run'}",
            f"--config.data.prepared_dir={directory / 'data'}",
            "--config.train.num_steps=200",
            "--config.data.batch_size=8",
            "--config.eval.max_records=2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr
    return directory / "run"


@pytest.fixture(scope="module")
def run(workdir):
    return ssjax.load(workdir)


@pytest.fixture(scope="module")
def prompts(run):
    data = run.config.data
    source = builders.open_source(data.task, data.path, data.prepared_dir, run.config.seed, "test")
    examples = pipeline.decode_examples(source, run.task, run.tokenizer, data.max_prompt_length, 0)
    return [example.prompt_ids for example in examples]


def generate(run, prompts, drafter, **changes):
    decode = run.decode_config(**changes)
    return run.decoder.generate(make_request(decode, prompts), Way(drafter, decode.deferred))


def test_all_200_records_are_identical_in_one_compilation_per_bucket(run):
    before = num_compilations()
    evaluation = report.evaluate(run, "test", 0)
    assert (evaluation["prompts"], evaluation["identical"]) == (200, 200)
    assert evaluation["speculative"]["tokens_per_call"] > 1.2
    assert evaluation["call_reduction"] > 1.2
    assert evaluation["plain"]["tokens_per_call"] == 1.0
    assert evaluation["plain"]["rouge1"] == evaluation["speculative"]["rouge1"] > 10
    # One bucket: a prefill and a loop for plain decoding, the same for speculative.
    assert num_compilations() - before == 4


@pytest.mark.parametrize(
    "drafter",
    [
        BestFirstDrafter(16, 4),
        StaticDrafter(StaticTree.from_branching((3, 2, 1)), 3),
        StaticDrafter(StaticTree.from_branching((1, 1, 1, 1)), 4),
    ],
    ids=["best first", "wide", "chain"],
)
def test_other_trees_and_batches_are_identical_too(run, prompts, drafter):
    chosen = prompts[:96]
    plain = generate(run, chosen, PlainDrafter(), batch_size=8)
    fast = generate(run, chosen, drafter, batch_size=8)
    assert [c.tokens for c in fast] == [c.tokens for c in plain]
    assert sum(c.calls for c in fast) < sum(c.calls for c in plain)


def test_sampled_outputs_are_identical_too(run, prompts):
    chosen = prompts[:64]
    settings = {"batch_size": 8, "temperature": 0.8, "top_p": 0.95, "seed": 3}
    plain = generate(run, chosen, PlainDrafter(), **settings)
    fast = generate(run, chosen, BestFirstDrafter(8, 4), **settings)
    assert [c.tokens for c in fast] == [c.tokens for c in plain]
    assert len({c.tokens for c in fast}) > 60


def test_python_interface(run):
    texts = ["#Person1#: Hello, is this City Bank?\n#Person2#: Yes.", "#Person1#: Hi."]
    answers = run.generate(texts, max_new_tokens=10)
    assert [answer.prompt for answer in answers] == texts
    assert all(len(answer.completion.tokens) <= 10 for answer in answers)
    assert answers[0].text == run.generate(texts[:1], max_new_tokens=10)[0].text
    with pytest.raises(ssjax.UserError, match="prompt 2 is empty"):
        run.generate(["a", " "])
    with pytest.raises(ssjax.UserError, match="max_new_tokens"):
        run.generate(["a"], max_new_tokens=-1)


def test_stop_strings_log_probs_and_seeds(run):
    dialogue = (
        "#Person1#: Hi Nick, guess what? I'm moving to the city centre.\n"
        "#Person2#: Really, Victor? Why is that?\n#Person1#: Well, there is no garden."
    )
    texts = [dialogue, "#Person1#: Hi."]
    whole = run.generate(texts, max_new_tokens=16, log_probs=True)
    middle = whole[0].text[5:8]
    [cut, other] = run.generate(texts, max_new_tokens=16, stop=(middle, "\0"), log_probs=True)
    assert cut.text == whole[0].text[: whole[0].text.index(middle)]
    count = len(cut.completion.tokens)
    assert cut.completion.finish == "stop" and 0 < count < len(whole[0].completion.tokens)
    assert cut.completion.log_probs == whole[0].completion.log_probs[:count]
    assert other.text == whole[1].text.split(middle)[0]
    with pytest.raises(ssjax.UserError, match="decode.stop"):
        run.generate(texts, stop=("",))
    sampled = run.generate(texts, temperature=1.0, seeds=[5, 6])
    assert run.generate(texts[1:], temperature=1.0, seed=6) == sampled[1:]


def test_evaluation_counts_nothing_after_a_stop_string(run):
    whole = report.evaluate(run, "test", 8)
    assert whole["acceptance"] == "exact"
    cut = report.evaluate(run, "test", 8, stop=("e",))
    for way in ("plain", "speculative"):
        assert 0 < cut[way]["tokens"] < whole[way]["tokens"]
        assert cut[way]["calls"] < whole[way]["calls"]
    assert cut["identical"] == 8
    assert "e" not in cut["example"]["output"] + cut["example"]["runs"]
    assert whole["example"]["output"].startswith(cut["example"]["output"])
