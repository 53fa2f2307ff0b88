import hashlib
import json
import re

import pytest

from ssjax.data import sample, scenes
from ssjax.data.scenes import Dice
from ssjax.errors import UserError


@pytest.fixture(scope="module")
def records():
    return sample.generate(sample.SPLIT_SIZES, seed=0)


def everything(records):
    return [record for split in records.values() for record in split]


def words(records):
    texts = (f"{record['dialogue']} {record['summary']}" for record in records)
    return re.findall(r"[A-Za-z']+", " ".join(texts).lower())


def test_sizes_fields_and_names(records):
    assert {split: len(rows) for split, rows in records.items()} == sample.SPLIT_SIZES
    assert all(set(r) == {"fname", "dialogue", "summary", "topic"} for r in everything(records))
    assert records["validation"][7]["fname"] == "validation_7"
    assert all(text for record in everything(records) for text in record.values())


def test_dialogues_have_the_form_of_dialogsum(records):
    for record in everything(records):
        lines = record["dialogue"].split("\n")
        assert 5 <= len(lines) <= 8
        for number, line in enumerate(lines):
            assert re.fullmatch(rf"#Person{1 + number % 2}#: \S.*[.?!]", line), line
        assert 45 <= len(record["dialogue"].split()) <= 75
        assert 14 <= len(record["summary"].split()) <= 26
        assert record["summary"].endswith(".")


def test_no_dialogue_and_no_summary_occurs_twice(records):
    for field in ("dialogue", "summary"):
        texts = [record[field] for record in everything(records)]
        assert len(set(texts)) == len(texts)


def test_same_seed_same_bytes():
    """The digest also notices a machine, or a change, that makes other records of a seed."""
    sizes = {"train": 40, "test": 5}
    first, again = (json.dumps(sample.generate(sizes, seed=3)) for _ in range(2))
    assert first == again
    assert first != json.dumps(sample.generate(sizes, seed=4))
    assert hashlib.sha256(first.encode()).hexdigest()[:16] == "3dd32af81c7c408a"


def test_the_whole_sample_is_the_published_one(records):
    digest = hashlib.sha256(json.dumps(records).encode()).hexdigest()
    assert digest == "afa9162c578d7a4ed1dc2a20e41a4a9bf9f178bda4b557fe10e3d8354290c9eb"


def test_seeds_share_almost_nothing(records):
    other = sample.generate({"train": 300}, seed=1)["train"]
    assert not {r["dialogue"] for r in other} & {r["dialogue"] for r in records["train"]}


def test_every_scene_occurs_often(records):
    topics = [record["topic"] for record in records["train"]]
    assert len(set(topics)) >= 12
    assert min(topics.count(topic) for topic in set(topics)) >= 40


def test_vocabulary_is_rich_and_known_from_training(records):
    known = set(words(records["train"]))
    assert 500 <= len(known) <= 1500
    held_out = words(records["validation"] + records["test"])
    assert sum(word in known for word in held_out) / len(held_out) > 0.999


def test_slots_of_the_summary_come_from_the_dialogue(records):
    """Days, numbers and proper names are copied, never made up.

    Only words inside a sentence are looked at, because the first is always capitalised.
    """
    for record in everything(records):
        for sentence in re.split(r"(?<=\.) ", record["summary"]):
            for slot in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+|\d[\d:]*(?!#)", sentence):
                assert slot in record["dialogue"], record


def test_a_change_of_mind_moves_the_summary_to_the_last_value(records):
    changed = 0
    for record in everything(records):
        change = re.search(
            r"(?:could we make it (.+) instead\?|Sorry, (.+) suits us)", record["dialogue"]
        )
        if change:
            changed += 1
            assert (change[1] or change[2]) in record["summary"]
    assert changed > 20


@pytest.mark.parametrize("scene", scenes.names())
def test_most_draws_of_a_scene_fit(scene):
    """Otherwise scenes with long outcomes would lose just those outcomes."""
    drawn = [scenes.play(scene, Dice(f"seed {i}")) for i in range(200)]
    assert sum(5 <= len(s.lines) <= 8 for s in drawn) == 200
    assert len({s.summary for s in drawn}) > 180
    fitting = [
        45 <= sum(1 + len(line.split()) for line in s.lines) <= 75
        and 14 <= len(s.summary.split()) <= 26
        for s in drawn
    ]
    assert sum(fitting) > 180


def test_asking_for_too_many_records_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(sample, "DIALOGUE_WORDS", (1, 2))
    with pytest.raises(UserError, match="ran out of new dialogues after 0 records: ask for"):
        sample.generate({"train": 1}, seed=0)
