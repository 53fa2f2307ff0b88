"""ROUGE, BLEU and chrF against cases worked out by hand and the examples of the published tools."""

import numpy as np
import pytest

from ssjax.metrics.text_metrics import ROUGE_TYPES, bleu, bleu_tokens, chrf, rouge, rouge_tokens

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


def test_ascii_texts_score_as_rouge_score_scores_them():
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(ROUGE_TYPES, use_stemmer=True)
    texts = [*OUTPUTS, *sum(REFERENCES, []), "it's under_scored, e-mail 3.5 RUNNING!", "a", "A-b_c"]
    for output in [*texts, "", "...", "\x1c\x00"]:
        for text in texts:
            expected = theirs.score(text, output)
            for kind, values in rouge([output], [[text]]).items():
                if kind != "rougeLsum":  # for which we cut texts into lines
                    assert values == [100 * expected[kind].fmeasure], (output, text)


# Texts, and what their words are.
SCRIPTS = {
    "日本語 テキスト。": ["日", "本", "語", "テ", "キ", "ス", "ト"],
    "コーヒー々": ["コ", "ー", "ヒ", "ー", "々"],
    "ภาษาไทยง่าย": ["ภ", "า", "ษ", "า", "ไ", "ท", "ย", "ง่", "า", "ย"],
    "हिन्दी में, किताबें।": ["हिन्दी", "में", "किताबें"],
    "Привет, МИР!": ["привет", "мир"],
    "ΣΟΦΟΣ σοφός": ["σοφοσ", "σοφόσ"],
    "안녕하세요 세계": ["안녕하세요", "세계"],
    "العربية ١٢٣، مرحبا؟": ["العربية", "١٢٣", "مرحبا"],
    "می\u200cروم می\u00adروم": ["میروم", "میروم"],
    "ក្រុម\u200bក": ["ក្", "រុ", "ម", "ក"],
    "e\u0301cole École": ["\u00e9cole", "\u00e9cole"],
    "don\u2019t naïve_word": ["don", "t", "naïve", "word"],
    "Straße ﬁne ＡＢＣ ①": ["strasse", "fine", "abc", "1"],
    "中文abc123混合": ["中", "文", "abc123", "混", "合"],
    "\u0301a 🎉 b\ufe0f": ["a", "b\ufe0f"],
}


@pytest.mark.parametrize("text, words", SCRIPTS.items())
def test_words_of_every_script(text, words):
    """Shown by scores: the text against its own words, and against half of them."""
    scores = rouge([text] * 2, [[text], ["é " + " ".join(words)]])
    assert scores["rouge1"][0] == scores["rougeL"][0] == 100
    assert scores["rouge2"][0] == scores["rougeLsum"][0] == 100
    count = len(words)
    assert scores["rouge1"][1] == pytest.approx(100 * 2 * count / (2 * count + 1))
    assert rouge([f"é {words[0]}"], [[text]])["rouge1"] == pytest.approx(
        [100 * 2 * 1 / (count + 2)]
    )


def test_marks_that_differ_are_other_words():
    assert rouge(["कि"], [["की"]])["rouge1"] == [0]  # a vowel sign
    assert rouge(["ง่าย"], [["งาย"]])["rouge1"] == pytest.approx([100 * 2 / 3])  # a tone mark
    assert rouge(["résumé"], [["resume"]])["rouge1"] == [0]


def test_a_reference_without_words_is_left_out_and_said(capsys):
    everywhere = dict.fromkeys(ROUGE_TYPES, [None])
    assert rouge(["🎉"], [["🎉👩\u200d👧"]]) == everywhere
    assert rouge(["..."], [["..."]]) == everywhere
    assert rouge(["a b"], [["a b", "!?"]])["rouge2"] == [100]
    assert rouge(["🎉", ""], [["a"], ["日本"]])["rouge1"] == [
        0,
        0,
    ]  # an output without words is wrong
    capsys.readouterr()
    rouge(["a"] * 2, [["a", "..", "!!"], ["b", "??", "c", "d"]])
    rouge(["b"] * 2, [["a", "..", "!!"], ["b", "??", "c", "d"]])
    line = "3 of 7 references hold no word: ROUGE leaves them out"
    assert capsys.readouterr().err.splitlines() == [line]


def test_one_word_has_no_pair():
    """rouge-score gives 0; beyond ASCII there is no such score to keep."""
    assert rouge(["word"], [["word"]])["rouge2"] == [0]
    assert rouge(["слово"], [["слово"]])["rouge2"] == [None]
    assert rouge(["слово"], [["слово", "одно слово"]])["rouge2"] == [0]


def test_full_stops_of_other_scripts_end_lines_too():
    one, other = "猫がいる。", "犬はいない！"
    scores = rouge([one + other, "यह घर है। वह पेड़ है।"], [[other + one], ["वह पेड़ है। यह घर है।"]])
    assert scores["rougeLsum"] == pytest.approx([100, 100])
    assert max(scores["rougeL"]) < 100


def test_bleu_takes_characters_where_there_are_no_spaces():
    text = "猫がマットの上に座っている。"
    assert total(bleu([text], [[text]])) == pytest.approx(100)
    assert 0 < total(bleu(["猫がマットの上で座っている。"], [[text]])) < 100
    assert bleu_tokens([text]) == "13a, and characters of scripts without spaces"
    assert bleu_tokens(["Кошка сидит.", "café"]) == bleu_tokens(OUTPUTS) == "13a"
    assert rouge_tokens(OUTPUTS) == "rouge-score" != rouge_tokens(["café"])


def test_bleu_of_chinese_is_that_of_sacrebleus_own_tokens():
    from sacrebleu.metrics import BLEU

    texts = ["我喜欢喝绿茶，她喜欢喝红茶。", "他们今天在北京开会。"]
    outputs = ["我喜欢喝红茶，她喜欢喝绿茶。", "他们昨天在北京开会。"]
    expected = BLEU(tokenize="zh").corpus_score(outputs, [texts]).score
    assert total(bleu(outputs, [[text] for text in texts])) == pytest.approx(expected)


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
