"""Text quality against several references: ROUGE of records, BLEU and chrF of a corpus."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class CorpusScores:
    """A metric that is not a mean over records."""

    statistics: np.ndarray  # [records, K], what each record adds
    score: Callable[[np.ndarray], float]  # in percent, of sums over records [K]


def rouge(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """F1 scores of each output in percent, with stemming, by the `rouge-score` package.

    The score of an output is its mean over the references (not the best of them). rougeLsum wants
    a sentence a line, so texts are split behind . ! and ?.

    Args:
      outputs: one text each.
      references: at least one text each.
    """
    from rouge_score import rouge_scorer  # 0.9 s of nltk and scipy, a third of a start

    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    results = {kind: [] for kind in ROUGE_TYPES}
    for output, texts in zip(outputs, references, strict=True):
        lines = _SENTENCE_END.sub("\n", output)
        scores = [scorer.score(_SENTENCE_END.sub("\n", text), lines) for text in texts]
        for kind in ROUGE_TYPES:
            results[kind].append(100 * sum(s[kind].fmeasure for s in scores) / len(texts))
    return results


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScores:
    """Corpus BLEU by sacrebleu with its defaults: 13a tokens, case kept, exp smoothing.

    Args:
      outputs: one text each.
      references: at least one text each, as many as there are.
    """
    from sacrebleu.metrics import BLEU

    return _corpus_scores(BLEU(force=True), outputs, references)


def chrf(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScores:
    """Corpus chrF2 by sacrebleu with its defaults; arguments as of `bleu`."""
    from sacrebleu.metrics import CHRF

    return _corpus_scores(CHRF(), outputs, references)


def _corpus_scores(metric, outputs, references) -> CorpusScores:
    # A stream holds one reference of each record; None where a record has no more of them.
    streams = list(itertools.zip_longest(*references))
    # What corpus_score does, in two steps: the first is what takes time.
    statistics = np.array(metric._extract_corpus_statistics(list(outputs), streams))
    return CorpusScores(
        statistics, lambda sums: metric._compute_score_from_stats(sums.tolist()).score
    )
