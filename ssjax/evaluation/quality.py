"""How good outputs are, by the metrics of their task.

    dialogsum, pairs, chat   ROUGE-1, 2, L, Lsum; the mean over a record's references
    e2e_nlg                  the same, corpus BLEU and chrF against all references of a record
    sql_context              execution match, exact match, and the shares of outputs that are
                             malformed, denied or stopped (see sql_database.py); those are misses

All in percent.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ssjax.data.pipeline import Example
from ssjax.data.tasks import E2E_NLG, SQL_CONTEXT
from ssjax.evaluation import sql_metrics, text_metrics
from ssjax.evaluation.bootstrap import interval
from ssjax.evaluation.sql_database import DENIED, MALFORMED, STOPPED

LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
    "execution_match": "execution match",
    "exact_match": "exact match",
    "malformed": "malformed",
}


def shown_metrics(task_name: str) -> tuple[str, ...]:
    """Keys of `score` that a table shows, the main one first."""
    rouge = ("rouge1", "rouge2", "rougeLsum")
    if task_name == SQL_CONTEXT.name:
        return ("execution_match", "exact_match", "malformed")
    return ("bleu", "chrf", *rouge) if task_name == E2E_NLG.name else rouge


def score(task_name: str, outputs: Sequence[str], examples: Sequence[Example]) -> dict:
    """Scores outputs by the metrics of a task.

    Args:
      task_name: a name that `get_task` knows.
      outputs: one text for each example.
      examples: at least one.

    Returns:
      The metrics by name, in percent; "intervals": for each [low, high], the 95 % bootstrap
      interval over records.
    """
    corpora: dict[str, text_metrics.CorpusScores] = {}
    if task_name == SQL_CONTEXT.name:
        values = _sql_values(outputs, examples)
    else:
        references = [example.references for example in examples]
        values = text_metrics.rouge(outputs, references)
        if task_name == E2E_NLG.name:
            corpora["bleu"] = text_metrics.bleu(outputs, references)
            corpora["chrf"] = text_metrics.chrf(outputs, references)
    corpora |= {name: _mean(by_record) for name, by_record in values.items()}
    return {
        **{name: float(c.score(c.statistics.sum(axis=0))) for name, c in corpora.items()},
        "intervals": {name: list(interval(c.statistics, c.score)) for name, c in corpora.items()},
    }


def _mean(values: Sequence[float]) -> text_metrics.CorpusScores:
    count = len(values)
    return text_metrics.CorpusScores(
        np.array(values, np.float64)[:, None], lambda sums: sums[0] / count
    )


def _sql_values(outputs: Sequence[str], examples: Sequence[Example]) -> Mapping[str, list[float]]:
    judgements = sql_metrics.judge_all(
        outputs,
        [example.record["context"] for example in examples],
        [example.references[0] for example in examples],
    )
    shares = {
        "execution_match": [j.execution for j in judgements],
        "exact_match": [j.exact for j in judgements],
        **{fate: [j.fate == fate for j in judgements] for fate in (MALFORMED, DENIED, STOPPED)},
        # References that SQLite cannot run; their execution match is exact match.
        "reference_failed": [not j.reference_ran for j in judgements],
    }
    return {name: [100.0 * share for share in column] for name, column in shares.items()}
