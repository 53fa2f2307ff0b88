"""Text quality: ROUGE with several references."""

import re
from collections.abc import Sequence

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rouge(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1 scores in percent, with stemming, by the `rouge-score` package.

    The score of an output is its mean over the references; the result is the mean over
    outputs. rougeLsum wants a sentence a line, so texts are split behind . ! and ?.

    Args:
      outputs: one text each.
      references: at least one text each.
    """
    from rouge_score import rouge_scorer  # 0.9 s of nltk and scipy, a third of a start

    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    totals = dict.fromkeys(ROUGE_TYPES, 0.0)
    for output, texts in zip(outputs, references, strict=True):
        lines = _SENTENCE_END.sub("\n", output)
        for text in texts:
            scores = scorer.score(_SENTENCE_END.sub("\n", text), lines)
            for kind in ROUGE_TYPES:
                totals[kind] += scores[kind].fmeasure / len(texts)
    return {kind: 100 * total / max(len(outputs), 1) for kind, total in totals.items()}
