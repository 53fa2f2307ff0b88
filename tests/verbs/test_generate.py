"""A model opened for decoding, and the verb on it: places, chats, lengths, outputs that fail."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import oracles
import pytest
import small_tokenizers

import ssjax
from ssjax.config import StreamsConfig
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.decoding.request import make_request
from ssjax.models.transformer import Transformer, init_params
from ssjax.weights import huggingface

ROOT = Path(__file__).parents[2]
POSITIONS = 93  # of this model alone: what is said once is said once in a process
SETTINGS = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


def write_model(directory, last_norm=1.0):
    """A random Llama with a chat template. last_norm: weight of the norm before its head."""
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
    config = dataclasses.replace(
        oracles.SMALL, vocab_size=tokenizer.vocab_size, max_positions=POSITIONS
    )
    streams = StreamsConfig(num_streams=0, num_stream_layers=1)
    params = jax.jit(lambda: init_params(Transformer(config, streams, scan=True), 0))()
    params["final_norm"] = jax.tree.map(lambda x: x * last_norm, params["final_norm"])
    huggingface.write_params(directory, config, params, huggingface.llama_config_json(config))
    tokenizer.save(directory)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def run(directory):
    return ssjax.load(directory)


def test_samples_go_by_the_place_that_a_prompt_is_given(run):
    whole = run.generate(["Anna wants", "x", "two tickets"], **SETTINGS)
    some = run.generate(["Anna wants", "two tickets"], numbers=[0, 2], **SETTINGS)
    assert [a.text for a in some] == [whole[0].text, whole[2].text]
    assert whole[2].text != run.generate("two tickets", **SETTINGS)[0].text
    *_, streamed = run.stream_answers("two tickets", number=2, **SETTINGS)
    assert streamed.completion == whole[2].completion
    for numbers in ([0], [0, 0.5], [0, -1], "ab", 3):
        with pytest.raises(ssjax.UserError, match="numbers must be"):
            run.generate(["a", "b"], numbers=numbers)


def test_a_chat_may_be_given_as_messages(run):
    text, chat = "Why?", [{"role": "user", "content": "Why?"}]
    longer = [{"role": "system", "content": "Be brief."}, *chat]
    answers = run.generate([text, chat, longer], max_new_tokens=6)
    assert answers[0].completion == answers[1].completion
    assert (answers[1].prompt, answers[2].prompt) == (tuple(chat), tuple(longer))
    assert run.encode_prompt(tuple(longer), raw=False) == run.tokenizer.encode_chat(
        longer, add_generation_prompt=True
    )
    assert [a.prompt for a in run.generate(chat, max_new_tokens=1)] == [tuple(chat)]
    with pytest.raises(ssjax.UserError, match="^prompt 2: messages are for chats, not for raw"):
        run.generate([text, chat], raw=True)
    with pytest.raises(ssjax.UserError, match=r'inputs\[1\]: message 1 needs "content"'):
        run.generate([text, [{"role": "user"}]])


def test_more_tokens_than_the_model_was_made_for_are_told_once(run, capsys):
    ids = [5] * (POSITIONS - 6)
    run.generate([ids, ids[1:]], max_new_tokens=6)
    assert "positions" not in capsys.readouterr().err
    run.generate(ids, max_new_tokens=7)
    run.generate([ids + ids, [1]], max_new_tokens=1)
    [line] = capsys.readouterr().err.splitlines()
    assert f"longer than the {POSITIONS} positions" in line


def test_an_export_keeps_what_the_model_was_made_for(run, directory):
    values = huggingface.llama_config_json(run.decoder.model.config)
    written = json.loads((directory / "config.json").read_text())
    assert values["max_position_embeddings"] == written["max_position_embeddings"] == POSITIONS


def test_the_verb_keeps_lines_and_reports_outputs_that_fail(tmp_path):
    """Of finite weights whose products are not."""
    write_model(tmp_path / "model", last_norm=3.4e38)
    file, out = tmp_path / "p.jsonl", tmp_path / "out.json"
    file.write_text('"Anna\\nwants \\u2028"\n\n{"prompt": "two"}\n')
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ssjax.generate",
            "--workdir",
            tmp_path / "model",
            "--prompts_file",
            file,
            "--json",
            out,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "\n\n\n")
    said = [line for line in done.stderr.splitlines() if line.startswith("prompt")]
    assert [line.split(":")[0] for line in said] == ["prompt 1", "prompt 3"]
    assert all("not finite from token 1 on" in line for line in said)
    assert "Traceback" not in done.stderr
    records = json.loads(out.read_text())
    assert [record["finish"] for record in records] == ["error", "empty", "error"]
    assert [record["prompt"] for record in records] == ["Anna\nwants \u2028", "", "two"]


def test_the_api_reports_outputs_that_fail_and_nothing_is_measured(tmp_path, capsys):
    from ssjax.evaluation.comparison import compare

    write_model(tmp_path, last_norm=3.4e38)
    run = ssjax.load(tmp_path)
    [answer] = run.generate("two", numbers=[4], max_new_tokens=3)
    assert (answer.text, answer.completion.finish) == ("", "error")
    *_, streamed = run.stream_answers("two", number=4, max_new_tokens=3)
    assert streamed.completion == answer.completion
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "prompt 5: the model's output is not finite from token 1 on"
    ] * 2
    way = run.way({}, 1)
    with pytest.raises(ssjax.UserError, match="^prompt 1: .*not finite"):
        compare(run.decoder, make_request(run.decode_config(max_new_tokens=3), [[1, 2]]), way)
