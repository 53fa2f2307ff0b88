"""Tasks of the user's own: from a registration to batches and scores."""

import json

import numpy as np
import pytest
import small_tokenizers

import ssjax
from ssjax import config as config_lib
from ssjax.config import experiment
from ssjax.data import builders, choice, pipeline, preview, sources
from ssjax.data.tasks import get_task, task_of_run
from ssjax.data.tokenizers.tokenizer import train_tokenizer
from ssjax.errors import UserError
from ssjax.metrics.quality import score

SHOP = [
    {"product": "kettle", "question": "Is it loud?", "answer": "No, it is quiet."},
    {"product": "lamp {small}", "question": "", "answer": ["It is on sale.", "On sale."]},
    {"product": "chair", "question": "Which wood?", "answer": "Oak."},
]

EXPERIMENT = """
import ssjax
from ssjax import config as config_lib

ssjax.register_task("shop", prompt="{product}: {question}\\nAnswer:", answer="answer")


def get_config():
    c = config_lib.default_config()
    config_lib.shrink(c)
    c.data.task = "shop"
    return c
"""


def write(directory, records=SHOP):
    directory.mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    for split in builders.SPLITS:
        (directory / f"{split}.jsonl").write_text(text)
    return str(directory)


def register(name="shop", **changes):
    definition = {"prompt": "{product}: {question}\nAnswer:", "answer": "answer"}
    ssjax.register_task(name, **(definition | changes))
    return get_task(name)


def records(path, tmp_path, name="shop"):
    return list(builders.open_source(name, path, str(tmp_path / "prepared"), 0, "train"))


def test_records_hold_the_columns_of_the_task(tmp_path):
    task = register()
    path = write(tmp_path / "files", [SHOP[0] | {"more": 5}, *SHOP[1:]])
    first, second, third = records(path, tmp_path)
    assert first == SHOP[0] | {"answer": ("No, it is quiet.",)}
    assert task.prompt(second) == "lamp {small}: \nAnswer:"
    assert task.references(second) == ("It is on sale.", "On sale.")
    assert task.references(third) == ("Oak.",)


def test_a_task_of_an_experiment_file_makes_batches_and_scores(tmp_path):
    """All that training, evaluation and `show` read, without the model."""
    file = tmp_path / "shop.py"
    file.write_text(EXPERIMENT)
    changes = {"data.path": write(tmp_path / "files"), "data.prepared_dir": str(tmp_path / "p")}
    for _ in range(2):  # a process may read it again
        config = experiment.load(str(file), changes)
    said = []
    tokenizer = train_tokenizer(small_tokenizers.TEXTS, 300, symbols=())
    batches = preview.batches(config, tokenizer, "train", said.append)
    assert said[0].startswith("train: 3 records; ")
    sequences = list(preview.sequences([batches[0]]))
    assert len(sequences) == config.data.batch_size
    answers = {preview.text_of(each.target_ids, tokenizer) for each in sequences}
    assert answers == {" No, it is quiet.<eos>", " It is on sale.<eos>", " Oak.<eos>"}
    source, task = choice.open_split(config, "test"), get_task("shop")
    examples = pipeline.decode_examples(source, task, tokenizer, 50, 0)
    result = score(task.metrics, ["No, it is quiet.", "On sale.", "Pine."], examples)
    assert 0 < result["rouge1"] < 100 and "bleu" not in result
    assert choice.data_digests(config).keys() == set(builders.SPLITS)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{a}", "text"),
        ("{{{a}}} {b} now\n\nSQL:", "{text now\n\nSQL:"),
        ("Say: {a}-{b}", "Say: text"),
        ("{a}{a} ", "text "),
    ],
)
def test_a_bare_input_stands_for_all_columns(prompt, expected):
    task = register("bare", prompt=prompt)
    assert task.prompt(task.record_from_input("text")) == expected


def test_a_column_may_be_called_input():
    task = register("alpaca", prompt="{instruction}\n{input}\n>", answer="output")
    record = {"instruction": "Add.", "input": "1 2", "output": ("3",)}
    assert task.prompt(record) == "Add.\n1 2\n>"
    assert task.prompt(task.record_from_input("Add.\n1 2")) == "Add.\n1 2\n>"


def test_target_ids_follow_the_glue():
    tokenizer = train_tokenizer(small_tokenizers.TEXTS, 300, symbols=())
    for glue in ("", " ", "\n"):
        task = register(f"glue{len(glue)}{glue == ' '}", glue=glue)
        ids = task.target_ids({"answer": ("Oak.",)}, tokenizer)
        assert ids == [*tokenizer.encode_continuation(f"{glue}Oak."), tokenizer.eos_id]


def read_form(line):
    if "form" not in line:
        return None
    product, question = line["form"]
    return {"product": product, "question": question, "answer": line["given"]}


def test_a_function_reads_files_of_another_form(tmp_path):
    path = write(
        tmp_path / "files",
        [{"form": ["kettle", "Loud?"], "given": "No."}, {"note": "not a record"}],
    )
    register(read=read_form)
    expected = {"product": "kettle", "question": "Loud?", "answer": ("No.",)}
    assert records(path, tmp_path) == [expected]
    before = builders.digests("shop", path, 0)
    register("other", read=lambda line: (columns := read_form(line)) and columns | {"more": 5})
    assert builders.digests("other", path, 0) == before  # of what the task reads alone


def test_prepared_data_goes_by_what_the_function_makes(tmp_path):
    """Not by its name or its text, which may stay where what it calls has changed."""
    path, suffix = write(tmp_path / "files"), {"now": "!"}
    register(read=lambda line: line | {"product": line["product"] + suffix["now"]})
    assert records(path, tmp_path)[0]["product"] == "kettle!"
    suffix["now"] = "?"
    assert records(path, tmp_path)[0]["product"] == "kettle?"


def test_records_are_read_once_for_their_digest_unless_a_function_makes_them(tmp_path, monkeypatch):
    rows = [*SHOP, SHOP[0] | {"product": str(tmp_path)}]  # that no other test has
    path, read = write(tmp_path / "files", rows), []
    record = sources.own_record
    monkeypatch.setattr(sources, "own_record", lambda *each: read.append(each) or record(*each))
    for name, changes, times in (("shop", {}, 1), ("made", {"read": lambda line: line}, 2)):
        register(name, **changes)
        read.clear()
        first = builders.digests(name, path, 0)
        assert builders.digests(name, path, 0) == first
        assert len(read) == times * 3 * len(rows)
    write(tmp_path / "files", SHOP[:2])
    assert builders.digests("shop", path, 0) != first


def test_the_same_definition_may_be_registered_again():
    for _ in range(2):
        register(read=lambda line: line)
    with pytest.raises(UserError, match="^task 'shop' is registered already, with another def"):
        register(read=lambda line: None)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "{question}"},
        {"answer": "text"},
        {"metrics": ("chrf",)},
        {"symbols": ("#",)},
        {"glue": ""},
        {"read": read_form},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_definition_of_a_name_is_refused(change):
    task = register()
    with pytest.raises(UserError, match="^task 'shop' is registered already, with another def"):
        register(**change)
    assert get_task("shop") is task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "chat"}, "^task 'chat' is one of ssjax's own; choose another name$"),
        ({"name": "a/b"}, "^task name 'a/b' must be of letters, digits, _ and -$"),
        ({"name": ""}, "^task name '' must be"),
        ({"prompt": "Answer:"}, "^prompt 'Answer:' names no column; write one as {name}$"),
        ({"prompt": "{answer}"}, "^prompt '{answer}' gives the answer away: {answer}$"),
        ({"prompt": "{a!r}"}, "^prompt '{a!r}': a column is written {name}, without more"),
        ({"prompt": "{a:>3}"}, "a column is written {name}, without more"),
        ({"prompt": "{}"}, "a column is written {name}, without more"),
        ({"prompt": "{a"}, "^prompt '{a': expected '}' before end of string$"),
        ({"metrics": ("f1",)}, r"^metrics \('f1',\) must be some of rouge, bleu, chrf, sql$"),
        ({"metrics": "rouge"}, "^metrics 'rouge' must be some of"),
        ({"metrics": ()}, r"^metrics \(\) must be some of"),
        ({"metrics": ("sql",)}, "^metric sql runs answers on tables; give the prompt a column"),
    ],
)
def test_a_definition_that_cannot_work_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        register(**change)


@pytest.mark.parametrize(
    ("line", "read", "message"),
    [
        (
            {"product": "a", "answer": "b"},
            None,
            r'train\.jsonl:2: field "question" is missing; the line has product, answer$',
        ),
        (
            {"product": 1, "question": "", "answer": "b"},
            None,
            r'train\.jsonl:2: field "product" should be text, found int$',
        ),
        ({"product": "", "question": ""}, None, r'train\.jsonl:2: field "answer" is missing'),
        ({"product": "", "question": "", "answer": []}, None, r'2: field "answer" should be text'),
        (
            {"product": "", "question": "", "answer": ["a", 1]},
            None,
            r'train\.jsonl:2: field "answer" should be text, found int$',
        ),
        (
            {"product": "", "question": "", "answer": " "},
            None,
            r'train\.jsonl:2: field "answer" is empty; fill it in or take the line out$',
        ),
        (
            {"n": 1},
            lambda line: line if "product" in line else line["x"],
            r"train\.jsonl:2: read of the task: KeyError: 'x'$",
        ),
        (
            {"n": 1},
            lambda line: line if "product" in line else "text",
            r"train\.jsonl:2: read of the task should return columns, found str$",
        ),
        ({"n": 1}, lambda line: None, r"train\.jsonl:1: no line is left"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, read, message):
    register(read=read)
    path = write(tmp_path / "files", [SHOP[0], line])
    with pytest.raises(UserError, match=message):
        builders.prepare("shop", path, str(tmp_path / "prepared"), 0)


def test_missing_files_name_the_columns(tmp_path):
    register()
    expected = (
        r"the files train\.jsonl, validation\.jsonl, test\.jsonl, from your own data, an object a "
        "line with product, question and answer"
    )
    with pytest.raises(UserError, match=f"^shop has no generated sample: .*{expected}$"):
        builders.prepare("shop", "", str(tmp_path), 0)
    with pytest.raises(UserError, match=expected):
        builders.prepare("shop", str(tmp_path), str(tmp_path), 0)


def test_a_run_names_its_task_alone():
    with pytest.raises(
        UserError,
        match="^task 'shop' of runs/shop is not registered here; call ssjax.register_task before "
        "ssjax.load, or name the file that does with --task_file$",
    ):
        task_of_run("shop", "runs/shop")
    task = register()
    assert task_of_run("shop", "runs/shop") is task
    assert task_of_run("chat", "runs/chat").name == "chat"


def test_trained_rows_are_those_of_the_prompt_format(tmp_path):
    """Against `pairs` of texts that were put together by hand."""
    task = register()
    path = write(tmp_path / "files")
    answers = [" No, it is quiet.", " It is on sale.", " Oak."]
    by_hand = [
        {"prompt": f"{record['product']}: {record['question']}\nAnswer:", "response": answer}
        for record, answer in zip(SHOP, answers, strict=True)
    ]
    tokenizer = train_tokenizer(small_tokenizers.TEXTS, 300, symbols=())
    layout = pipeline.BatchLayout(3, 40, 20)
    own = pipeline.eval_batches(records(path, tmp_path), task, tokenizer, layout)
    pairs = pipeline.eval_batches(by_hand, get_task("pairs"), tokenizer, layout)
    for name, values in own[0].items():
        np.testing.assert_array_equal(values, pairs[0][name])


def test_config_accepts_the_name():
    config = config_lib.default_config()
    config.data.task = "shop"
    assert config_lib.from_config_dict(config).data.task == "shop"
