"""ROUGE against cases worked out by hand."""

import pytest

from ssjax.evaluation.text_metrics import rouge


def test_equal_texts_score_100():
    text = "The cat sat. It slept!"
    assert rouge([text], [[text]]) == pytest.approx(
        {"rouge1": 100, "rouge2": 100, "rougeL": 100, "rougeLsum": 100}
    )


def test_unigrams_and_bigrams_by_hand():
    # output 3 words, reference 4, 2 in common (the, cat), 1 bigram of 2 and 3 in common
    scores = rouge(["the cat slept"], [["the cat sat down"]])
    assert scores["rouge1"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_mean_over_references_then_over_outputs():
    scores = rouge(["a b", "x y"], [["a b", "c d"], ["x y"]])
    assert scores["rouge1"] == pytest.approx((50 + 100) / 2)


def test_sentence_order_does_not_matter_to_lsum():
    scores = rouge(["One cat. Two dogs."], [["Two dogs. One cat."]])
    assert scores["rougeLsum"] == pytest.approx(100)
    assert scores["rougeL"] < 100


def test_empty_output_scores_zero():
    assert rouge([""], [["a b"]])["rouge1"] == 0
