"""Text quality against several references: ROUGE of records, BLEU and chrF of a corpus.

ROUGE's own tokens are runs of a-z and 0-9, so that texts of other scripts had none. Beyond ASCII
a token is a run of letters and digits of any script with their marks, and in scripts that put no
spaces between words a single character. Texts in ASCII are scored as the `rouge-score` package
does.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ssjax import messages

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# After . ! and ? only before a space; the full stops of East Asia need none.
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u0589\u061f\u06d4\u0964\u0965])\s+|(?<=[\u3002\uff01\uff1f\uff61])\s*"
)
# Scripts without spaces between words, as the names of their characters begin.
_WITHOUT_SPACES = (
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "KATAKANA-HIRAGANA",
    "BOPOMOFO",
    "YI",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "JAVANESE",
    "BALINESE",
)
_ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True)
class CorpusScores:
    """A metric that is not a mean over records."""

    statistics: np.ndarray  # [records, K], what each record adds
    score: Callable[[np.ndarray], float]  # in percent, of sums over records [K]


def rouge(
    outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, list[float | None]]:
    """F1 scores of each output in percent, with stemming, by the `rouge-score` package.

    The score of an output is its mean over the references (not the best of them). rougeLsum wants
    a sentence a line, so texts are split after the marks that end one. A reference without any
    token says nothing about an output and is left out, which is said on stderr once, and beyond
    ASCII one of a single token from rouge2.

    Args:
      outputs: one text each.
      references: at least one text each.

    Returns:
      By type, a score for each output; None where all references were left out.
    """
    from rouge_score import rouge_scorer  # 0.9 s of nltk and scipy, a third of a start

    tokenizer = _Words()
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=tokenizer)
    results = {kind: [] for kind in ROUGE_TYPES}
    empty = 0
    for output, texts in zip(outputs, references, strict=True):
        lines = _SENTENCE_END.sub("\n", output)
        found = {kind: [] for kind in ROUGE_TYPES}
        for text in texts:
            count = len(tokenizer.tokenize(text))
            empty += not count
            scores = scorer.score(_SENTENCE_END.sub("\n", text), lines) if count else {}
            for kind, score in scores.items():
                if kind != "rouge2" or count > 1 or text.isascii():
                    found[kind].append(score.fmeasure)
        for kind, measures in found.items():
            results[kind].append(100 * sum(measures) / len(measures) if measures else None)
    if empty:
        total = sum(map(len, references))
        messages.say_once(f"{empty} of {total} references hold no word: ROUGE leaves them out")
    return results


def rouge_tokens(texts: Iterable[str]) -> str:
    """What ROUGE takes for a token in these texts, for reports."""
    if all(text.isascii() for text in texts):
        return "rouge-score"
    return "rouge-score, beyond ASCII Unicode words, or characters of scripts without spaces"


class _Words:
    """The tokenizer of `rouge-score` in ASCII, and its like beyond."""

    def __init__(self):
        from rouge_score.tokenizers import DefaultTokenizer

        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        if text.isascii():
            return self._ascii.tokenize(text)
        tokens = []
        for word in _words(text):
            tokens += self._ascii.tokenize(word) if word.isascii() else [word]
        return tokens


def _words(text: str) -> list[str]:
    """Words in one spelling: NFKC, without case, without characters that only join."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words: list[str] = []
    last = ""  # letter or alone: what the last word ends in; empty: it is over
    for character in folded:
        kind = _kind(character)
        if kind == "alone" or (kind == "letter" and last != "letter"):
            words.append(character)
        elif kind == "letter" or (kind == "mark" and last):
            words[-1] += character
        if kind in ("letter", "alone"):
            last = kind
        elif kind == "border":
            last = ""
    return words


@functools.lru_cache(maxsize=2**16)
def _kind(character: str) -> str:
    """letter: part of a word; alone: one itself; mark: part of what it stands on; or no part."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category[0] == "L":
        script = unicodedata.name(character, "").partition(" ")[0]
        return "alone" if script in _WITHOUT_SPACES else "letter"
    if category[0] == "N":
        return "letter"
    joins = category == "Cf" and character != _ZERO_WIDTH_SPACE
    return "nothing" if joins else "border"


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScores:
    """Corpus BLEU by sacrebleu with its defaults: 13a tokens, case kept, exp smoothing.

    Characters of scripts without spaces are tokens of their own, as in its tokenizer for Chinese.

    Args:
      outputs: one text each.
      references: at least one text each, as many as there are.
    """
    from sacrebleu.metrics import BLEU

    apart = [[_apart(text) for text in texts] for texts in references]
    return _corpus_scores(BLEU(force=True), list(map(_apart, outputs)), apart)


def bleu_tokens(texts: Iterable[str]) -> str:
    """What BLEU takes for a token in these texts, for reports."""
    if all(_apart(text) == text for text in texts):
        return "13a"
    return "13a, and characters of scripts without spaces"


def _apart(text: str) -> str:
    """Spaces around the characters of scripts without spaces, marks staying with them."""
    if text.isascii():
        return text
    pieces, is_alone = [], False
    for character in text:
        kind = _kind(character)
        if kind == "alone" or (is_alone and kind != "mark"):
            pieces.append(" ")
        is_alone = kind == "alone" or (is_alone and kind == "mark")
        pieces.append(character)
    return "".join(pieces)


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
