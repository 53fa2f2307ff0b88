import contextlib
import itertools
import json
import threading

import numpy as np
import pytest
import small_tokenizers

from ssjax.data import length_report, pipeline
from ssjax.data.pipeline import BatchLayout
from ssjax.data.tasks import CHAT, DIALOGSUM, E2E_NLG, PAIRS, SQL_CONTEXT, Task
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files, train_tokenizer
from ssjax.errors import UserError

NUM_RECORDS = 10
SIZES = {"batch_size": 4, "max_prompt_length": 40, "max_target_length": 30}

# Every target begins with a different number, so that rows of a batch can be told apart.
SOURCE = [
    {"mr": f"name[{'x' * i}], area[riverside]", "references": (f"{i} is here.", "other")}
    for i in range(NUM_RECORDS)
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = pipeline.tokenizer_texts(SOURCE, E2E_NLG, limit=NUM_RECORDS)
    return train_tokenizer(texts, 300, symbols=())


def batches(tokenizer, *, source=SOURCE, seed=5, **changes):
    rows, layout = changes.pop("rows", None), BatchLayout(**(SIZES | changes))
    return pipeline.train_batches(source, E2E_NLG, tokenizer, layout, seed=seed, rows=rows)


def lengths(batch):
    """Prompt tokens and all tokens of every row."""
    whole = (batch["segments"] > 0).sum(axis=1)
    return whole - batch["is_target"].sum(axis=1), whole


def targets(batch, tokenizer):
    rows = zip(batch["tokens"], batch["is_target"], strict=True)
    return [tokenizer.decode(tokens[is_target]) for tokens, is_target in rows]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_encode_example(tokenizer):
    prompt_ids, target_ids = pipeline.encode_example(SOURCE[3], E2E_NLG, tokenizer, 40, 30)
    prompt = "name[xxx], area[riverside]\n\nText:"
    assert prompt_ids == [tokenizer.bos_id, *tokenizer.encode(prompt)]
    # SentencePiece puts the space in front of a text itself.
    assert target_ids == [*tokenizer.encode("3 is here."), tokenizer.eos_id]
    assert tokenizer.decode(prompt_ids + target_ids) == (
        "name[xxx], area[riverside]\n\nText: 3 is here."
    )


def test_long_prompts_lose_their_beginning_and_long_targets_their_end(tokenizer):
    whole_prompt, whole_target = pipeline.encode_example(SOURCE[3], E2E_NLG, tokenizer, 99, 99)
    for max_prompt in range(1, len(whole_prompt) + 2):
        prompt, _ = pipeline.encode_example(SOURCE[3], E2E_NLG, tokenizer, max_prompt, 9)
        assert len(prompt) == min(max_prompt, len(whole_prompt))
        assert prompt[0] == tokenizer.bos_id
        assert prompt[1:] == whole_prompt[len(whole_prompt) - len(prompt) + 1 :]
    for max_target in range(1, len(whole_target) + 2):
        _, target = pipeline.encode_example(SOURCE[3], E2E_NLG, tokenizer, 9, max_target)
        assert target == whole_target[:max_target]


def test_a_tokenizer_without_prefix():
    """A prompt that is cut is its end alone, and a filler row is one padding id."""
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "t")
    assert tokenizer.prefix_ids == ()
    prompt, target = pipeline.encode_example(SOURCE[3], E2E_NLG, tokenizer, 99, 99)
    assert tokenizer.decode(prompt) == "name[xxx], area[riverside]\n\nText:"
    assert tokenizer.decode_continuation(target) == " 3 is here."
    assert pipeline.encode_example(SOURCE[3], E2E_NLG, tokenizer, 5, 9)[0] == prompt[-5:]
    [batch] = pipeline.eval_batches(SOURCE[:1], E2E_NLG, tokenizer, BatchLayout(2, 40, 30))
    assert batch["tokens"][1].tolist() == [tokenizer.pad_id] * 70
    assert [kind[1] for kind in lengths(batch)] == [1, 1]


ASKED = [{"role": "user", "content": "Why a red coat?"}]
INPUTS = {  # a record of each task, and the same given as a bare input
    DIALOGSUM: (
        {"dialogue": "Anna: Hi.\nBob: Ho.", "summaries": ("They greet.",)},
        "Anna: Hi.\nBob: Ho.",
    ),
    E2E_NLG: (SOURCE[3], "name[xxx], area[riverside]"),
    SQL_CONTEXT: (
        {"context": "CREATE TABLE t (a)", "question": "How many?", "answer": "SELECT 1"},
        "CREATE TABLE t (a)\n\nQuestion: How many?",
    ),
    PAIRS: ({"prompt": "Anna wants ", "response": "tea "}, "Anna wants "),
    CHAT: ({"messages": json.dumps(ASKED), "answer": "Anna wants it."}, "Why a red coat?"),
}


@pytest.mark.parametrize("max_prompt", [3, 99])
@pytest.mark.parametrize("files", ["sentencepiece_chat", "byte_level"])
@pytest.mark.parametrize("task", INPUTS, ids=lambda task: task.name)
def test_decoding_has_the_prompt_ids_of_training(task, files, max_prompt):
    tokenizer = tokenizer_from_files(getattr(small_tokenizers, files)(), "t")
    record, text = INPUTS[task]
    layout = BatchLayout(1, max_prompt, 30)
    trained = [
        pipeline.train_batches([record], task, tokenizer, layout, seed=0)[0],
        pipeline.eval_batches([record], task, tokenizer, layout)[0],
    ]
    [example] = pipeline.decode_examples([record], task, tokenizer, max_prompt, limit=0)
    for batch in trained:
        ids = batch["tokens"][0, : lengths(batch)[0][0]].tolist()
        assert ids == list(example.prompt_ids)
    typed = task.prompt_ids(task.record_from_input(text), tokenizer)
    prefix = list(tokenizer.prefix_ids)
    assert 3 < len(typed) <= 99 and typed[: len(prefix)] == prefix
    assert ids == (typed if max_prompt == 99 else prefix + typed[len(prefix) - 3 :])


def test_a_batch_holds_prompt_target_and_padding(tokenizer):
    batch = batches(tokenizer)[0]
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "tokens": ((4, 70), "int32"),
        "segments": ((4, 70), "int32"),
        "is_target": ((4, 70), "bool"),
    }
    for i, text in enumerate(targets(batch, tokenizer)):
        record = SOURCE[int(text.split()[0])]
        prompt, target = pipeline.encode_example(record, E2E_NLG, tokenizer, 40, 30)
        sizes = [len(prompt), len(target), 70 - len(prompt) - len(target)]
        assert batch["tokens"][i].tolist() == prompt + target + [tokenizer.pad_id] * sizes[2]
        assert batch["segments"][i].tolist() == np.repeat([1, 1, 0], sizes).tolist()
        assert batch["is_target"][i].tolist() == np.repeat([False, True, False], sizes).tolist()


@pytest.mark.parametrize("batch_size", [3, 4, 10, 16])
def test_every_epoch_has_every_record_once_and_its_own_order(tokenizer, batch_size):
    """Batches cross the ends of epochs; the stream of rows does not repeat or skip."""
    dataset = batches(tokenizer, batch_size=batch_size)
    num_epochs = 4
    rows = list(
        itertools.chain.from_iterable(
            targets(dataset[i], tokenizer) for i in range(-(-num_epochs * 10 // batch_size))
        )
    )
    epochs = [rows[start : start + 10] for start in range(0, num_epochs * 10, 10)]
    for epoch in epochs:
        assert sorted(epoch) == [f"{i} is here." for i in range(10)]
    assert len({tuple(epoch) for epoch in epochs}) == num_epochs


def test_a_batch_depends_on_seed_and_index_alone(tokenizer):
    dataset, again = batches(tokenizer), batches(tokenizer)
    forwards = [dataset[i] for i in range(12)]
    for i in reversed(range(12)):
        assert_equal(again[i], forwards[i])
    other = batches(tokenizer, seed=6)
    assert any(targets(other[i], tokenizer) != targets(forwards[i], tokenizer) for i in range(3))


@pytest.mark.parametrize("start", [0, 1, 7])
def test_an_iterator_starts_anywhere_and_leaves_no_thread(tokenizer, start):
    dataset = batches(tokenizer)
    before = set(threading.enumerate())
    with contextlib.closing(pipeline.train_iterator(dataset, start)) as iterator:
        for i in range(start, start + 5):
            assert_equal(next(iterator), dataset[i])
        readers = set(threading.enumerate()) - before
        assert readers
    for reader in readers:
        reader.join(timeout=10)
        assert not reader.is_alive()


def test_a_batch_larger_than_the_source(tokenizer):
    dataset = batches(tokenizer, source=SOURCE[:1])
    assert targets(dataset[2], tokenizer) == ["0 is here."] * 4


def test_eval_batches_hold_every_record_once_and_fill_up_without_targets(tokenizer):
    dataset = pipeline.eval_batches(SOURCE, E2E_NLG, tokenizer, BatchLayout(**SIZES))
    assert len(dataset) == 3
    rows = list(itertools.chain.from_iterable(targets(b, tokenizer) for b in dataset))
    assert rows == [f"{i} is here." for i in range(10)] + ["", ""]
    last = dataset[2]
    assert all(batch["tokens"].shape == (4, 70) for batch in dataset)
    prompt_lengths, whole = lengths(last)
    np.testing.assert_array_equal(whole[2:], [1, 1])
    np.testing.assert_array_equal(prompt_lengths[2:], [1, 1])
    assert (whole[:2] > prompt_lengths[:2]).all()
    with pytest.raises(IndexError):
        dataset[3]


def test_decode_examples_are_distinct_and_in_order(tokenizer):
    source = [SOURCE[0], SOURCE[1], SOURCE[0], SOURCE[2]]
    examples = pipeline.decode_examples(source, E2E_NLG, tokenizer, 8, limit=0)
    assert [example.index for example in examples] == [0, 1, 3]
    assert examples[1].prompt == "name[x], area[riverside]\n\nText:"
    assert examples[1].references == ("1 is here.", "other")
    for example in examples:
        record = source[example.index]
        assert (
            list(example.prompt_ids) == pipeline.encode_example(record, E2E_NLG, tokenizer, 8, 8)[0]
        )
    assert pipeline.decode_examples(source, E2E_NLG, tokenizer, 8, limit=2) == examples[:2]


def test_describe_counts_what_is_cut(tokenizer):
    lengths = [
        tuple(map(len, pipeline.encode_example(record, E2E_NLG, tokenizer, 99, 99)))
        for record in SOURCE
    ]
    prompts, answers = zip(*lengths, strict=True)
    limit = sorted(prompts)[6]
    report = length_report.describe(SOURCE, E2E_NLG, tokenizer, limit, min(answers) - 1)
    assert report.num_records == report.num_described == 10
    assert report.prompts_cut == sum(length > limit for length in prompts) > 0
    assert report.targets_cut == 10
    assert (report.max_prompt, report.max_target) == (max(prompts), max(answers))
    assert report.mean_target == pytest.approx(sum(answers) / 10)
    assert report.max_kept == limit + min(answers) - 1
    assert "10 records; prompt" in str(report)


class Endless(Task):
    """A task that forgets the end of sequence."""

    def target_ids(self, record, tokenizer):
        return super().target_ids(record, tokenizer)[:-1]


def test_describe_refuses_targets_that_never_end(tokenizer):
    task = Endless(**vars(E2E_NLG))
    with pytest.raises(UserError, match="^record 0 of task e2e_nlg: its target does not end with"):
        length_report.describe(SOURCE, task, tokenizer, 40, 30)


def test_describe_refuses_targets_that_are_all_empty():
    """Here of a template that writes no answers, so that each target is its end alone."""
    files = small_tokenizers.byte_level()
    settings = json.loads(files["tokenizer_config.json"])
    whole = settings["chat_template"]
    silent = whole.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'user' %}{{ message['content'] }}{% endif %}",
    )
    records = [INPUTS[CHAT][0]] * 3
    for template, is_silent in ((whole, False), (silent, True)):
        settings["chat_template"] = template
        changed = files | {"tokenizer_config.json": json.dumps(settings).encode()}
        tokenizer = tokenizer_from_files(changed, "t")
        expected = pytest.raises(UserError, match="^every target of task chat is empty")
        with expected if is_silent else contextlib.nullcontext():
            assert length_report.describe(records, CHAT, tokenizer, 40, 30).num_records == 3


def test_describe_accepts_some_empty_answers(tokenizer):
    source = [{"prompt": "a", "response": ""}, {"prompt": "a", "response": "b"}]
    assert length_report.describe(source, PAIRS, tokenizer, 40, 30).max_target == 2


def test_tokenizer_texts_are_spread_over_the_source():
    texts = list(pipeline.tokenizer_texts(SOURCE, E2E_NLG, limit=4))
    assert texts[1::2] == ["0 is here.", "2 is here.", "5 is here.", "7 is here."]
    assert len(list(pipeline.tokenizer_texts(SOURCE, E2E_NLG, limit=999))) == 20


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes_below_one(name):
    with pytest.raises(UserError, match=f"^{name} is 0: it must be at least 1$"):
        BatchLayout(**(SIZES | {name: 0}))


def test_no_records(tokenizer):
    with pytest.raises(UserError, match="no records"):
        batches(tokenizer, source=[])
