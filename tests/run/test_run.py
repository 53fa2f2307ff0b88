"""A model opened for decoding: chats, pieces of text, what a notebook shows of the values."""

import dataclasses

import pytest
from chat_run import open_chat_run

from ssjax.config import checks
from ssjax.decoding.completion import Completion
from ssjax.errors import UserError
from ssjax.run import Answer

CHAT = [{"role": "user", "content": "Why two tickets?"}]
SAMPLED = {"max_new_tokens": 24, "temperature": 1.5, "seed": 7}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random model with streams that answers chats."""
    return open_chat_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("passes", [1, 4])
def test_pieces_of_a_stream_join_to_the_text_that_generate_returns(run, passes):
    for number, stop in ((0, ()), (3, ("e",))):
        settings = SAMPLED | {"stop": stop}
        [answer] = run.generate("two tickets", numbers=[number], **settings)
        pieces = list(run.stream("two tickets", number=number, passes=passes, **settings))
        assert "".join(pieces) == answer.text
        assert all(isinstance(piece, str) and piece for piece in pieces)
        assert stop or len(pieces) > 2
        *_, last = run.stream_answers("two tickets", number=number, **settings)
        assert last == answer


def test_a_reply_to_a_chat_is_an_answer(run):
    [expected] = run.generate([CHAT], **SAMPLED)
    assert run.chat(CHAT, **SAMPLED) == expected
    assert "".join(run.stream(CHAT, **SAMPLED)) == expected.text
    assert len(run.chat(CHAT, log_probs=True).completion.log_probs) > 0


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "messages is of type list"),
        ("Why?", "messages is of type str"),
        ([CHAT], "messages is of type list"),
        ([{"role": "user"}], 'messages: message 1 needs "content"'),
    ],
)
def test_what_is_no_chat_is_told(run, messages, told):
    with pytest.raises(UserError, match=told):
        run.chat(messages)


def test_a_stream_is_of_one_prompt(run):
    with pytest.raises(UserError, match="^prompt holds 2 prompts; stream decodes one at a time"):
        list(run.stream(["a", "b"]))


def test_a_request_is_checked_against_the_streams_and_nothing_else(run, monkeypatch):
    """The whole config was checked when the run was opened."""
    monkeypatch.setattr(checks, "validate", None)
    assert run.decode_config(num_nodes=7) == dataclasses.replace(run.config.decode, num_nodes=7)
    assert run.decode_config(stop=["a"]).stop == ("a",)
    for changes, told in [
        ({"num_nods": 7}, "config: unknown key decode.num_nods; did you mean decode.num_nodes"),
        ({"num_nodes": "many"}, "config: decode.num_nodes must be a whole number"),
        ({"num_streams": 3}, "decode.num_streams 3 is more than the 2 streams of the model"),
        ({"min_new_tokens": 99}, "decode.min_new_tokens 99 must lie between 0 and"),
    ]:
        with pytest.raises(UserError, match=told):
            run.decode_config(**changes)


def test_values_show_as_one_line(run):
    completion = Completion((5, 6, 7, 8, 9, 3), "eos", (1, 4, 1), (3, 0), 3)
    assert repr(completion) == "Completion(6 tokens, eos, 2 passes)"
    answer = Answer("Why?", "two\n" + 50 * "long ", completion)
    assert repr(answer) == (
        "Answer('two\\nlong long long long long long long long long long lon...', eos, 6 tokens, "
        "2.50 a pass)"
    )
    shown = repr(run)
    assert shown.startswith(f"Run({str(run.workdir)!r}, step 5, task chat, ")
    assert shown.endswith(" parameters, float32, 2 streams)") and "\n" not in shown
