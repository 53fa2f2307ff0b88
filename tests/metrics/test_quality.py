"""The metrics of each task, and where they are shown."""

import json
import sys

import pytest

from ssjax.data import pipeline
from ssjax.data.tasks import DIALOGSUM, E2E_NLG, PAIRS, SQL_CONTEXT
from ssjax.errors import UserError
from ssjax.evaluation import benchmark_tables, report
from ssjax.metrics.quality import LABELS, cell, require_packages, score, shown_metrics

TABLE = "CREATE TABLE game (venue VARCHAR, score INTEGER)"
RECORDS = {
    DIALOGSUM: [
        {"dialogue": "A.", "summaries": ("Ann sells tea to Bob.", "Bob buys tea.", "Tea.")},
        {"dialogue": "B.", "summaries": ("Bob waits for a train in the rain.",)},
    ],
    E2E_NLG: [
        {"mr": "a", "references": ("The Mill is a cheap pub by the river.", "A cheap pub.")},
        {"mr": "b", "references": ("Aromi serves French food in the city centre.",)},
    ],
    PAIRS: [
        {"prompt": "a", "response": "one two three"},
        {"prompt": "b", "response": "four five six"},
    ],
    SQL_CONTEXT: [
        {"context": TABLE, "question": "a", "answer": "SELECT venue FROM game WHERE score > 3"},
        {"context": TABLE, "question": "b", "answer": "SELECT MAX(score) FROM game"},
    ],
}


def examples(task):
    return [
        pipeline.Example(i, task.prompt(record), (1,), task.references(record), record)
        for i, record in enumerate(RECORDS[task])
    ]


@pytest.mark.parametrize(
    ("task", "package"), [(E2E_NLG, "sacrebleu"), (SQL_CONTEXT, "sqlglot")], ids=["e2e", "sql"]
)
def test_a_package_that_scores_need_and_is_missing_is_named(monkeypatch, task, package):
    require_packages(task.metrics)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}; run pip install 'ssjax\[scores\]'"):
        require_packages(task.metrics)
    require_packages(DIALOGSUM.metrics)


@pytest.mark.parametrize("task", [E2E_NLG, PAIRS, SQL_CONTEXT], ids=lambda task: task.name)
def test_a_model_that_writes_the_reference_scores_100(task):
    result = score(task.metrics, [e.references[0] for e in examples(task)], examples(task))
    for name in shown_metrics(task.metrics):
        # Several references are averaged by ROUGE, so none of them scores 100.
        if not (task is E2E_NLG and name.startswith("rouge")):
            expected = 0 if name == "malformed" else 100
            assert result[name] == pytest.approx(expected), name
            assert result["intervals"][name] == pytest.approx([expected, expected]), name


def test_rouge_of_dialogsum_is_the_mean_over_three_references():
    result = score(DIALOGSUM.metrics, ["Bob buys tea.", "nothing"], examples(DIALOGSUM))
    # Against the three: 2 of 5 and 3 words in common (Bob, tea); all; 1 of 1 and 3.
    first = (2 * 2 / (5 + 3) + 1 + 2 * 1 / (1 + 3)) / 3
    assert result["rouge1"] == pytest.approx(100 * first / 2)
    assert "bleu" not in result and "execution_match" not in result


def test_records_that_a_metric_says_nothing_about_are_left_out_and_counted():
    made = [
        pipeline.Example(i, "a", (1,), (text,), {"prompt": "a", "response": text})
        for i, text in enumerate(["one two", "🎉", "слово"])
    ]
    result = score(PAIRS.metrics, ["one two", "🎉", "слово"], made)
    assert (result["rouge1"], result["rouge2"]) == (100, 100)
    assert result["left_out"] == {"rouge1": 1, "rouge2": 2, "rougeL": 1, "rougeLsum": 1}
    assert result["tokenizers"]["rouge"].startswith("rouge-score, beyond ASCII")
    nothing = score(PAIRS.metrics, ["🎉"], made[1:2])
    assert nothing["rouge1"] is nothing["intervals"]["rouge1"] is None
    json.dumps(nothing, allow_nan=False)
    assert cell(nothing, "rouge1") == cell(nothing, "rouge1", with_interval=True) == "-"
    assert cell(result, "rouge1", with_interval=True) == "100.00 (100.00-100.00)"
    ascii_only = score(PAIRS.metrics, ["one two"], made[:1])
    assert "left_out" not in ascii_only and ascii_only["tokenizers"] == {"rouge": "rouge-score"}


def test_shares_of_sql():
    one = examples(SQL_CONTEXT)[0]
    outputs = [
        "SELECT venue FROM game WHERE score >= 4",
        "select VENUE from GAME where SCORE > 3",
        "SELECT venue FROM game",
        "SELECT venue FROM",
        "DROP TABLE game",
    ]
    result = score(SQL_CONTEXT.metrics, outputs, [one] * 5)
    intervals = result.pop("intervals")
    assert result == {
        "execution_match": 40,
        "exact_match": 20,
        "malformed": 20,
        "denied": 20,
        "stopped": 0,
        "reference_failed": 0,
    }
    assert intervals.keys() == result.keys()
    low, high = intervals["execution_match"]
    assert 0 <= low < 40 < high <= 100


def test_examples_carry_their_records():
    class Letters:
        prefix_ids = ()

        def encode(self, text):
            return [ord(c) for c in text]

    source = RECORDS[SQL_CONTEXT]
    made = pipeline.decode_examples(source, SQL_CONTEXT, Letters(), 50, 0)
    assert [example.record for example in made] == source


@pytest.mark.parametrize("task", list(RECORDS), ids=lambda task: task.name)
def test_tables_show_the_metrics_of_the_task(task, capsys):
    quality = score(task.metrics, [e.references[0] for e in examples(task)], examples(task))
    way = {
        "tokens": 9,
        "calls": 3,
        "tokens_per_call": 3.0,
        "milliseconds_per_call": 1.0,
        "tokens_per_second": 5.0,
        "acceptance_by_depth": [],
    }
    report.show(
        {
            "task": task.name,
            "metrics": task.metrics,
            "split": "test",
            "prompts": 2,
            "step": 1,
            "device": "cpu",
            "dtype": "float32",
            "batch_size": 1,
            "streams": 2,
            "draft_nodes": 4,
            "acceptance": "exact",
            "identical": 2,
            "call_reduction": 3.0,
            "speedup": 1.0,
            "plain": way | quality,
            "speculative": way | quality,
            "example": {"prompt": "p", "reference": "r", "runs": "[r]"},
        }
    )
    shown = capsys.readouterr().out
    for name in LABELS:
        assert (f"│ {LABELS[name]} " in shown) == (name in shown_metrics(task.metrics)), name
    row = {
        "batch_size": 1,
        "drafter": "plain",
        "draft_nodes": 0,
        "identical": 2,
        "tokens_per_call": 1.0,
        "call_reduction": 1.0,
        "first_token_ms": 1.0,
        "step_cost": 1.0,
        "acceptance_by_depth": [],
        "pass_ms": 1.0,
        "tokens_per_second": dict(value=1.0, low=1.0, high=1.0),
        "speedup": dict(value=1.0, low=1.0, high=1.0),
        "extra_parameters": 0,
    }
    result = {
        "task": task.name,
        "source": "s",
        "prompts": 2,
        "max_new_tokens": 4,
        "temperature": 0,
        "parameters": 5,
        "dtype": "float32",
        "device": "cpu",
        "rows": [row | quality, row],
    }
    lines = benchmark_tables.markdown(result).splitlines()
    metric = shown_metrics(task.metrics)[0]
    low, high = quality["intervals"][metric]
    assert lines[2].endswith(f" {LABELS[metric]} |")
    assert lines[4].endswith(f" {quality[metric]:.2f} ({low:.2f}-{high:.2f}) |")
    assert lines[5].endswith(" - |")  # prompts without references
    assert {"dialogsum": "ROUGE-1", "e2e_nlg": "BLEU", "sql_context": "execution match"}.get(
        task.name, "ROUGE-1"
    ) == LABELS[metric]
