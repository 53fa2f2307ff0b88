"""ROUGE, BLEU and chrF against cases worked out by hand and the examples of the published tools."""

import numpy as np
import pytest

from ssjax.evaluation.text_metrics import bleu, chrf, rouge

# The example in the README of sacrebleu, by record.
OUTPUTS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def total(scores):
    return scores.score(scores.statistics.sum(axis=0))


def test_equal_texts_score_100():
    text = "The cat sat. It slept!"
    assert rouge([text], [[text]]) == {
        kind: pytest.approx([100]) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")
    }
    long = "The cat sat on the mat and slept."
    for metric in (bleu, chrf):
        assert total(metric([long], [["Another text.", long]])) == pytest.approx(100)


def test_unigrams_and_bigrams_by_hand():
    # output 3 words, reference 4, 2 in common (the, cat), 1 bigram of 2 and 3 in common
    scores = rouge(["the cat slept"], [["the cat sat down"]])
    assert scores["rouge1"] == pytest.approx([100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)])
    assert scores["rouge2"] == pytest.approx([100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)])


def test_example_of_rouge_score():
    """That of its README; 6 of 8 and 9 words in common, 5 of them in order (the quick brown
    jumps the)."""
    scores = rouge(
        ["The quick brown dog jumps on the log."], [["The quick brown fox jumps over the lazy dog"]]
    )
    assert scores["rouge1"] == pytest.approx([100 * 2 * 6 / (8 + 9)])
    assert scores["rougeL"] == pytest.approx([100 * 2 * 5 / (8 + 9)])


def test_mean_over_references_of_each_output():
    outputs, references = ["a b", "x y"], [["a b", "c d"], ["x y"]]
    assert rouge(outputs, references)["rouge1"] == pytest.approx([50, 100])


def test_sentence_order_does_not_matter_to_lsum():
    scores = rouge(["One cat. Two dogs."], [["Two dogs. One cat."]])
    assert scores["rougeLsum"] == pytest.approx([100])
    assert scores["rougeL"][0] < 100


def test_empty_output_scores_zero():
    assert rouge([""], [["a b"]])["rouge1"] == [0]
    assert total(bleu(["", "a"], [["a b"], ["c"]])) == 0


def test_examples_of_sacrebleu():
    assert total(bleu(OUTPUTS, REFERENCES)) == pytest.approx(48.53, abs=0.005)
    assert total(chrf(OUTPUTS, REFERENCES)) == pytest.approx(59.73, abs=0.005)


def test_records_may_have_different_numbers_of_references():
    """Its example too: the first record has lost its first reference."""
    references = [REFERENCES[0][1:], *REFERENCES[1:]]
    assert total(bleu(OUTPUTS, references)) == pytest.approx(29.44, abs=0.005)


def test_totals_are_those_of_sacrebleus_own_corpus_scores():
    """Ours are computed from sums of what records add; its public function is another way in."""
    from sacrebleu.metrics import BLEU, CHRF

    references = [*REFERENCES[:2], [*REFERENCES[2], "He bit the man."]]
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(3)]
    for ours, theirs in ((bleu, BLEU()), (chrf, CHRF())):
        expected = theirs.corpus_score(OUTPUTS, streams).score
        assert total(ours(OUTPUTS, references)) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_a_part_is_of_the_sums_of_that_part():
    """What a bootstrap draw computes: records 0, 0 and 2."""
    scores = bleu(OUTPUTS, REFERENCES)
    drawn = scores.score(np.array([2, 0, 1]) @ scores.statistics)
    chosen = [0, 0, 2]
    whole = bleu([OUTPUTS[i] for i in chosen], [REFERENCES[i] for i in chosen])
    assert drawn == pytest.approx(total(whole))
