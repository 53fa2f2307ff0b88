"""A model's own answers as data: equal to `Run.generate`, the same bytes after every kill."""

import dataclasses
import json

import jax
import oracles
import pytest
import small_tokenizers

from ssjax.config import Config, DataConfig, DecodeConfig, StreamsConfig
from ssjax.data import builders, distilled, pipeline
from ssjax.data.choice import open_split
from ssjax.data.tasks import CONTINUATION, get_task
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.distillation import answers, directory
from ssjax.distillation.answers import Answerer
from ssjax.distillation.parts import Part
from ssjax.distillation.prompts import Asked
from ssjax.errors import DamagedError, UserError
from ssjax.models.transformer import Transformer, init_params
from ssjax.run import open_run
from ssjax.weights.load import Trained

TOKENIZER = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
WORDS = (" tea", " two", " red", " the", " car")
# Any row of these is how the tokenizer writes its text, so nothing is left out.
PLAIN = {*(TOKENIZER.encode_continuation(word)[0] for word in WORDS), TOKENIZER.eos_id}
BANNED = tuple(sorted(set(range(TOKENIZER.vocab_size)) - PLAIN))
LENGTHS = {"max_prompt_length": 8, "max_target_length": 6}
PAIRS = [
    {"prompt": f"{name} wants {item}.", "response": f" Why {item}?"}
    for item in ("a red coat", "two tickets", "some tea")
    for name in ("Anna", "Bob", "Dan")
]
CHATS = [
    {"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": "No"}]}
    for p in PAIRS
]
SQL = [{"context": "CREATE TABLE a (b)", "question": p["prompt"], "answer": "b"} for p in PAIRS]
E2E = "mr,ref\n" + "".join(f'"{p["prompt"]}","It is  here."\n' for p in PAIRS)


class Killed(BaseException):
    """What ends a test's process here."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random model with streams."""
    model = dataclasses.replace(oracles.SMALL, vocab_size=TOKENIZER.vocab_size)
    config = Config(
        model=model,
        streams=StreamsConfig(num_streams=2, num_stream_layers=1),
        data=DataConfig(task="pairs"),
        decode=DecodeConfig(num_nodes=3, prompt_buckets=(8,)),
    )
    params = jax.jit(lambda: init_params(Transformer(model, config.streams, scan=True), 0))()
    workdir = tmp_path_factory.mktemp("run")
    return open_run(Trained(workdir, 5, config, TOKENIZER, params, {}, None))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A directory of pairs; a record recurs."""
    return write(tmp_path_factory.mktemp("data"), [*PAIRS, PAIRS[0]])


def write(path, records):
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    for split in builders.SPLITS:
        (path / f"{split}.jsonl").write_text(text)
    return path


def config_of(path, task="pairs", banned=BANNED, least=1, **lengths):
    return Config(
        data=DataConfig(
            task=task,
            path=str(path),
            prepared_dir=str(path.parent / "prepared"),
            **(LENGTHS | lengths),
        ),
        # No empty answers; max_new_tokens decides nothing.
        decode=DecodeConfig(banned_tokens=banned, min_new_tokens=least, max_new_tokens=2),
    )


def asked_of(config, **changes):
    asked = {"temperatures": (0.0, 1.0), "num_records": 0, "splits": ("train",), "seed": 3}
    return Asked(config, **(asked | changes))


def distill(run, target, config, batch_size=3, **changes):
    asked = asked_of(config, **changes)
    return directory.distill(Answerer(run, run.way({}, 3), asked, batch_size), "weights", target)


def content(path):
    """Every file but the empty lock."""
    return {each.name: each.read_bytes() for each in path.iterdir() if each.name != "lock"}


@pytest.fixture(scope="module")
def peace(run, data, tmp_path_factory):
    """What an uninterrupted run wrote: (directory, distilled.json)."""
    target = tmp_path_factory.mktemp("peace") / "target"
    return target, distill(run, target, config_of(data))


def test_targets_are_what_generate_says(run, data, peace):
    """Prompts too, token for token; samples alone, one by one, are those of a batch."""
    target, about = peace
    config, tokens, temperatures = config_of(data), {}, []
    asked = asked_of(config)
    source, found = open_split(config, "train"), open_split(config_of(target), "train")
    for place in range(len(PAIRS)):
        temperature = asked.temperature_of("train", place)
        prompt, _ = pipeline.encode_example(
            source[place], get_task("pairs"), TOKENIZER, *LENGTHS.values()
        )
        [answer] = run.generate(
            prompt,
            temperature=temperature,
            seed=asked.seed_of("train"),
            numbers=[place],
            banned_tokens=BANNED,
            min_new_tokens=1,
            max_new_tokens=LENGTHS["max_target_length"],
            drafter="plain",
        )
        temperatures.append(f"{temperature:g}")
        tokens[place] = prompt, list(answer.completion.tokens)
    assert [found[place]["prompt"] for place in range(len(PAIRS))] == [p["prompt"] for p in PAIRS]
    for place, expected in tokens.items():
        example = pipeline.encode_example(
            found[place], get_task("pairs"), TOKENIZER, *LENGTHS.values()
        )
        assert example == expected
    ends = {target[-1] == TOKENIZER.eos_id for _, target in tokens.values()}
    assert ends == {True, False}, "some answers should end and some be cut"
    # The last record recurs; at temperature 0 twice, it is left out.
    recurs = len(found) == len(PAIRS) + 1
    assert recurs != (asked.temperature_of("train", len(PAIRS)) == 0 == float(temperatures[0]))
    count = about["splits"]["train"]
    assert count["answers"] == len(found) == len(PAIRS) + recurs
    assert count["left_out"] == ({} if recurs else {"repeated": 1})
    assert all(count["by_temperature"][value] >= temperatures.count(value) > 0 for value in "01")


def test_splits_that_are_not_answered_are_kept(data, peace):
    records = list(open_split(config_of(peace[0]), "validation"))
    assert [record.pop(CONTINUATION) for record in records] == [""] * len(records)
    assert records == list(open_split(config_of(data), "validation"))


@pytest.mark.parametrize("batch_size", [1, 20])
def test_the_batch_size_decides_nothing(run, data, peace, tmp_path, batch_size):
    distill(run, tmp_path / "target", config_of(data), batch_size)
    assert content(tmp_path / "target") == content(peace[0])


def jobs_of(data):
    config = config_of(data)
    return directory.make_jobs(open_split(config, "train"), TOKENIZER, asked_of(config), "train")


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_batch_changes_no_byte(run, data, peace, tmp_path, monkeypatch, torn):
    append, batches = Part.append, len(list(jobs_of(data).batches(0, 3)))
    assert batches > 3
    for survived in range(batches):
        target, left = tmp_path / f"{survived}", [survived]

        def killed(part, batch, left=left):
            path, before = part._path, b""
            if left[0] == 0:
                if torn:
                    before = path.read_bytes() if path.exists() else b""
                    append(part, batch)
                    line = path.read_bytes()[len(before) :]
                    path.write_bytes(before + line[: len(line) // 2])
                raise Killed
            left[0] -= 1
            append(part, batch)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Part, "append", killed)
            distill(run, target, config_of(data))
        with pytest.raises(UserError, match="is not finished; run the same"):
            open_split(config_of(target), "train")
        before = len(Part(target / "train.part", jobs_of(data)).answers)
        assert before == sum(map(len, list(jobs_of(data).batches(0, 3))[:survived]))
        distill(run, target, config_of(data))
        assert content(target) == content(peace[0])


def test_a_kill_while_the_splits_are_written_changes_no_byte(
    run, data, peace, tmp_path, monkeypatch
):
    write_atomic = directory.write_atomic
    for survived in range(5):
        target, left = tmp_path / f"{survived}", [survived]

        def killed(path, text, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            write_atomic(path, text)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(directory, "write_atomic", killed)
            distill(run, target, config_of(data))
        distill(run, target, config_of(data))
        assert content(target) == content(peace[0])


def test_what_is_finished_is_left_as_it_is(run, data, peace, monkeypatch, capsys):
    before = content(peace[0])
    monkeypatch.setattr(Answerer, "answers", None)
    assert distill(run, peace[0], config_of(data)) == peace[1]
    assert "is finished already" in capsys.readouterr().err
    assert content(peace[0]) == before


def test_other_settings_are_refused_in_one_line(run, data, peace, tmp_path):
    for changes, told in [
        ({"seed": 4}, "was begun with seed=3, not 4"),
        ({"temperatures": (0.0,)}, r"was begun with temperatures=\[0.0, 1.0\], not \[0.0\]"),
        ({"num_records": 2}, "was begun with num_records=0, not 2"),
        ({"splits": ("test",)}, r"was begun with splits=\['train'\], not \['test'\]"),
    ]:
        with pytest.raises(UserError, match=told):
            distill(run, peace[0], config_of(data), **changes)
    with pytest.raises(UserError, match="was begun with max_target_length=6, not 5"):
        distill(run, peace[0], config_of(data, max_target_length=5))
    with pytest.raises(UserError, match="was distilled itself"):
        distill(run, tmp_path / "target", config_of(peace[0]))
    with pytest.raises(UserError, match="exists and is not empty"):
        distill(run, data, config_of(data))
    assert not (data / "lock").exists()


def test_a_file_of_answers_that_was_changed_is_refused(run, data, tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    monkeypatch.setattr(directory, "_finish", killed)
    with pytest.raises(Killed):
        distill(run, tmp_path / "target", config_of(data))
    part = tmp_path / "target" / "train.part"
    lines = part.read_text().splitlines()
    for wrong, told in (("[1]", "is not as it was"), (lines[-1], "answers to other prompts")):
        part.write_text("\n".join([wrong, *lines[1:]]) + "\n")
        with pytest.raises(DamagedError, match=told):
            distill(run, tmp_path / "target", config_of(data))


def test_text_that_reads_as_other_tokens_is_left_out(run, data, tmp_path):
    """Letters that the tokenizer would join, beside words that it writes so."""
    joined = {*PLAIN, *map(TOKENIZER._id_of, ("t", "e", "a", "h"))}
    banned = tuple(set(BANNED) - joined)
    asked = {"temperatures": (1.0,), "splits": ("train", "validation")}
    about = distill(run, tmp_path / "target", config_of(data, banned=banned), **asked)
    for split, count in about["splits"].items():
        assert count["left_out"][answers.OTHER_TOKENS] > 0 < count["answers"]
        assert count["answers"] + sum(count["left_out"].values()) == len(PAIRS) + 1
        assert len(open_split(config_of(tmp_path / "target"), split)) == count["answers"]


def test_nothing_that_can_be_trained_on_is_one_line(run, data, tmp_path):
    only_end = tuple(set(range(TOKENIZER.vocab_size)) - {TOKENIZER.eos_id})
    with pytest.raises(UserError, match=r"no answer .* left out {'empty': 10}"):
        distill(run, tmp_path / "t", config_of(data, banned=only_end, least=0), temperatures=(1.0,))


@pytest.mark.parametrize("task", ["dialogsum", "e2e_nlg", "sql_context", "chat"])
def test_every_task_reads_its_own_prompts_again(run, tmp_path, task):
    path = tmp_path / "data"
    path.mkdir()
    if task == "e2e_nlg":
        for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
            (path / name).write_text(E2E)
    elif task != "dialogsum":
        write(path, CHATS if task == "chat" else SQL)
    config = config_of(path, task, max_prompt_length=24)
    if task == "dialogsum":  # its generated sample
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=""))
    distill(run, tmp_path / "target", config, batch_size=9, num_records=9, temperatures=(1.0,))
    source = open_split(config, "train")
    found = open_split(config_of(tmp_path / "target", task), "train")
    places = pipeline.spread(len(source), 9)
    assert len(found) == 9
    for place, record in zip(places, found, strict=True):
        text = record.pop(CONTINUATION)
        assert record == source[place]
        expected = [*TOKENIZER.encode_continuation(text), TOKENIZER.eos_id]
        assert get_task(task).target_ids(record | {CONTINUATION: text}, TOKENIZER) == expected


@pytest.mark.parametrize("about", ["{}", "[]", '{"finished": true, "asked": {"task": 1}}'])
def test_a_damaged_description_is_one_line(run, data, tmp_path, about):
    (tmp_path / "distilled.json").write_text(about)
    with pytest.raises(UserError, match=r"distilled.json: not .*python -m ssjax.distill"):
        open_split(config_of(tmp_path), "train")
    with pytest.raises(UserError, match="give another --target"):
        distill(run, tmp_path, config_of(data))


def test_training_reads_it_as_it_was_written(peace):
    target, _ = peace
    distilled.check_lengths(config_of(target, max_target_length=5).data)
    with pytest.raises(UserError, match="give --config.data.max_target_length=6 or less"):
        distilled.check_lengths(config_of(target, max_target_length=7).data)
    with pytest.raises(UserError, match="give --config.data.max_prompt_length=8"):
        distilled.check_lengths(config_of(target, max_prompt_length=9).data)
    with pytest.raises(UserError, match="was distilled for the task pairs, not sql_context"):
        open_split(config_of(target, "sql_context"), "train")


def test_a_record_has_its_temperature_whatever_others_there_are(data):
    all_of_them = asked_of(config_of(data), temperatures=(0.0, 0.5, 1.0))
    some = dataclasses.replace(all_of_them, num_records=2, splits=("train", "test"))
    drawn = [all_of_them.temperature_of("train", place) for place in range(300)]
    assert drawn == [some.temperature_of("train", place) for place in range(300)]
    assert all(70 < drawn.count(value) < 130 for value in (0.0, 0.5, 1.0))
    assert all_of_them.seed_of("train") != all_of_them.seed_of("validation")
    for wrong in ({"temperatures": (-1.0,)}, {"splits": ("dev",)}, {"splits": ()}):
        with pytest.raises(UserError, match="--"):
            dataclasses.replace(all_of_them, **wrong)
