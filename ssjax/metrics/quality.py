"""How good outputs are, by the metrics that their task names.

    rouge        ROUGE-1, 2, L, Lsum; the mean over a record's references
    bleu, chrf   of the corpus, against all references of a record
    sql          execution match, exact match, and the shares of outputs that are malformed, denied
                 or stopped (see sql_database.py); those are misses

All in percent. A record that a metric says nothing about is left out of it and counted; a metric
without any record is None.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ssjax.data.pipeline import Example
from ssjax.data.tasks import Metric
from ssjax.errors import UserError
from ssjax.metrics import sql_metrics, text_metrics
from ssjax.metrics.bootstrap import interval
from ssjax.metrics.sql_database import DENIED, MALFORMED, STOPPED

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


_SHOWN: Mapping[Metric, tuple[str, ...]] = {
    "rouge": ("rouge1", "rouge2", "rougeLsum"),
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "sql": ("execution_match", "exact_match", "malformed"),
}


def shown_metrics(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Keys of `score` that a table shows, the main one first. metrics: of a task."""
    return tuple(itertools.chain(*(_SHOWN[metric] for metric in metrics)))


# What the extra `scores` installs; ROUGE is always there.
_PACKAGES: Mapping[Metric, str] = {"bleu": "sacrebleu", "chrf": "sacrebleu", "sql": "sqlglot"}


def require_packages(metrics: Sequence[Metric]) -> None:
    """Checks that metrics can be computed here, before hours go into what they score.

    Args:
      metrics: of a task.

    Raises:
      UserError: a package is not installed; names it and how to install it.
    """
    for metric in metrics:
        package = _PACKAGES.get(metric)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{metric}, by which this task is scored, needs {package}; run "
                "pip install 'ssjax[scores]'"
            )


def score(metrics: Sequence[Metric], outputs: Sequence[str], examples: Sequence[Example]) -> dict:
    """Scores outputs by the metrics of a task.

    Args:
      metrics: of the task.
      outputs: one text for each example.
      examples: at least one.

    Returns:
      The metrics by name, in percent; "intervals": for each [low, high], the 95 % bootstrap
      interval over records. Both are None for a metric that no record has. Of text metrics also
      "tokenizers", what each takes for a token, and "left_out", the number of records that each
      says nothing about, where there are any.
    """
    corpora: dict[str, text_metrics.CorpusScores | None] = {}
    values: dict[str, Sequence[float | None]] = {}
    tokenizers, left_out = {}, {}
    references = [example.references for example in examples]
    texts = [*outputs, *itertools.chain(*references)]
    if "rouge" in metrics:
        values |= text_metrics.rouge(outputs, references)
        tokenizers["rouge"] = text_metrics.rouge_tokens(texts)
        left_out = {name: by_record.count(None) for name, by_record in values.items()}
    if "bleu" in metrics:
        corpora["bleu"] = text_metrics.bleu(outputs, references)
        tokenizers["bleu"] = text_metrics.bleu_tokens(texts)
    if "chrf" in metrics:
        corpora["chrf"] = text_metrics.chrf(outputs, references)
        tokenizers["chrf"] = "characters"
    if "sql" in metrics:
        values |= _sql_values(outputs, examples)
    notes = {"tokenizers": tokenizers} if tokenizers else {}
    notes |= {"left_out": left_out} if any(left_out.values()) else {}
    corpora |= {name: _mean(by_record) for name, by_record in values.items()}
    return {
        **{name: c and float(c.score(c.statistics.sum(axis=0))) for name, c in corpora.items()},
        "intervals": {
            name: c and list(interval(c.statistics, c.score)) for name, c in corpora.items()
        },
        **notes,
    }


def cell(values: Mapping, metric: str, *, with_interval: bool = False) -> str:
    """A cell of a table; "-" where there is no such score.

    Args:
      values: of `score`; may lack the metric, as for prompts without references.
      metric: a key of it.
      with_interval: 12.34 (11.11-13.57) in place of 12.34.
    """
    value = values.get(metric)
    if value is None:
        return "-"
    if not with_interval:
        return f"{value:.2f}"
    low, high = values["intervals"][metric]
    return f"{value:.2f} ({low:.2f}-{high:.2f})"


def _mean(values: Sequence[float | None]) -> text_metrics.CorpusScores | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return text_metrics.CorpusScores(
        np.array(known, np.float64)[:, None], lambda sums: sums[0] / len(known)
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
