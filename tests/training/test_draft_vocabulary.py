"""Which tokens a run can draft, and that it keeps them."""

import dataclasses
from collections import Counter
from contextlib import nullcontext

import pytest

from ssjax.config import Config, DataConfig, StreamsConfig, from_dict, to_dict
from ssjax.errors import UserError
from ssjax.files.reading import to_json
from ssjax.training import draft_vocabulary
from ssjax.weights.load import make_model

WITH_TEN = Config(streams=StreamsConfig(draft_vocab_size=10))


def test_targets_come_first_then_prompts():
    of_targets, of_prompts = Counter({7: 3, 2: 5, 9: 3}), Counter({9: 4, 1: 1, 4: 8})
    most_frequent = draft_vocabulary.most_frequent
    ranked = [2, 9, 7, 4, 1]  # of two that are as frequent, the one that prompts have
    for size in range(1, 6):
        assert most_frequent(of_targets, of_prompts, size) == tuple(sorted(ranked[:size]))
    assert most_frequent(of_targets, of_prompts, 99) == (1, 2, 4, 7, 9)


def test_tokens_are_counted_as_training_has_them():
    class Task:
        def prompt_ids(self, record, tokenizer):
            return record[0]

        def target_ids(self, record, tokenizer):
            return record[1]

    source = [([1, 1, 2], [5, 6, 6, 7]), ([3], [5])]
    targets, prompts = draft_vocabulary.count_tokens(source, Task(), None, 3)
    assert targets == {5: 2, 6: 2}  # what is cut off is not drafted either
    assert prompts == {1: 2, 2: 1, 3: 1}


def test_a_run_keeps_its_tokens(tmp_path):
    kept = draft_vocabulary.kept
    assert kept(WITH_TEN, tmp_path) == WITH_TEN  # nothing there yet
    streams = dataclasses.replace(WITH_TEN.streams, draft_tokens=(1, 5, 8))
    (tmp_path / "config.json").write_text(to_json(to_dict(Config(streams=streams))))
    assert kept(WITH_TEN, tmp_path).streams.draft_tokens == (1, 5, 8)
    for other in (StreamsConfig(), StreamsConfig(draft_vocab_size=11)):
        assert kept(Config(streams=other), tmp_path).streams == other
    given = dataclasses.replace(streams, draft_tokens=(2,))
    assert kept(Config(streams=given), tmp_path).streams == given


def test_the_tokens_of_a_run_are_those_of_its_data(tmp_path):
    """Of the sample with its own tokenizer: every target that is short enough can be drafted."""
    from ssjax.data.choice import choose_tokenizer, open_split
    from ssjax.data.tasks import get_task

    data = DataConfig(prepared_dir=str(tmp_path), tokenizer_vocab_size=400, tokenizer_records=50)
    config = dataclasses.replace(WITH_TEN, data=data)
    config = dataclasses.replace(config, streams=StreamsConfig(draft_vocab_size=350))
    tokenizer = choose_tokenizer(tmp_path, config, None, lambda _: None)
    said = []
    tokens = draft_vocabulary.found(config, tokenizer, said.append).streams.draft_tokens
    assert len(tokens) <= 350 and list(tokens) == sorted(set(tokens))
    counted, task = Counter(), get_task(config.data.task)
    for record in open_split(config, "train"):
        counted.update(task.target_ids(record, tokenizer)[: data.max_target_length])
    assert {token for token, _ in counted.most_common(100)} <= set(tokens)
    covered = sum(counted[token] for token in tokens) / counted.total()
    assert said == [
        f"draft vocabulary: {len(tokens):,} tokens, {covered:.2%} of those in training targets"
    ]


def test_ids_that_the_model_lacks_are_one_line():
    class Tokenizer:
        vocab_size = 40

    for last, told in ((39, False), (40, True)):
        streams = StreamsConfig(draft_vocab_size=2, draft_tokens=(1, last))
        with pytest.raises(UserError, match="names the id 40") if told else nullcontext():
            make_model(Config(streams=streams), Tokenizer())


@pytest.mark.parametrize(
    ("streams", "told"),
    [
        ({"num_streams": 0, "draft_vocab_size": 4}, "needs streams"),
        ({"draft_vocab_size": 1, "draft_tokens": (1, 2)}, "names 2 tokens"),
        ({"draft_vocab_size": 4, "draft_tokens": (2, 2)}, "must rise"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_one_line(streams, told):
    with pytest.raises(UserError, match=told):
        from_dict({"streams": streams})
