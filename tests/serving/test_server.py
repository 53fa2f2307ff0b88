"""The client of OpenAI, unmodified, gets what `generate` gives."""

import json
import re
import urllib.request

import openai
import pytest

ASKED = "two tickets to the sea"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
SAMPLED = {"temperature": 1.2, "top_p": 0.9}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def get(served, path):
    with urllib.request.urlopen(f"{served.url}{path}") as answer:
        return answer.read().decode()


def post(served, path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{served.url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_completion_is_that_of_generate(run, client):
    absent = dict.fromkeys(("n", "seed", "stop", "stream", "logprobs", "suffix", "top_p"))
    found = client.completions.create(
        model="tiny", prompt=ASKED, max_tokens=12, extra_body=absent | {"user": "someone"}
    )
    [expected] = run.generate(ASKED, max_new_tokens=12)
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "length")
    num_prompt = len(run.encode_prompt(ASKED, raw=False))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (num_prompt, 12)
    assert found.usage.total_tokens == num_prompt + 12
    figures = found.model_extra["metrics"]
    drafting, completion = figures["speculative_decoding"], expected.completion
    assert drafting["num_spec_steps"] == completion.calls
    assert drafting["num_accepted_draft_tokens"] == sum(completion.kept)
    assert drafting["num_spec_tokens"] == 2 == len(drafting["acceptance_histogram"]) - 1
    assert sum(drafting["acceptance_histogram"]) == completion.calls
    assert drafting["num_draft_tokens"] == 4 * completion.calls
    assert figures["time_to_first_token_ms"] >= figures["queue_time_ms"] >= 0
    assert figures["tokens_per_second"] > 0


def test_a_chat_is_that_of_run_chat(run, client):
    found = client.chat.completions.create(model="tiny", messages=CHAT)
    expected = run.chat(CHAT)
    message = found.choices[0].message
    assert (message.role, message.content) == ("assistant", expected.text)
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED}]}]
    found = client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=5)
    assert found.choices[0].message.content == run.chat(CHAT[1:], max_new_tokens=5).text


def test_n_samples_are_those_of_generate_with_that_seed(run, client):
    asked = {"prompt": [ASKED, "one"], "n": 2, "seed": 7, "max_tokens": 20}
    found = client.completions.create(model="tiny", **asked, **SAMPLED)
    expected = run.generate([ASKED, ASKED, "one", "one"], max_new_tokens=20, seed=7, **SAMPLED)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices] == [each.text for each in expected]
    assert len({choice.text for choice in found.choices}) == 4
    assert found.model_extra["metrics"] is None
    assert found.usage.completion_tokens == sum(len(e.completion.tokens) for e in expected)
    assert found.usage.prompt_tokens == sum(
        len(run.encode_prompt(prompt, raw=False)) for prompt in (ASKED, "one")
    )


def test_without_a_seed_samples_differ(client):
    texts = {
        client.completions.create(model="tiny", prompt=ASKED, temperature=2.0).choices[0].text
        for _ in range(3)
    }
    assert len(texts) == 3


def test_a_stream_joins_to_the_whole(run, client):
    """Two answers at once, their pieces apart by index; the runs join to the same text."""
    options = {"include_usage": True, "include_runs": True}
    asked = {"prompt": ASKED, "n": 2, "seed": 3, "max_tokens": 40, "temperature": 0.7}
    expected = run.generate([ASKED] * 2, seed=3, max_new_tokens=40, temperature=0.7)
    texts, runs, finish = ["", ""], ["", ""], [None, None]
    chunks = list(
        client.completions.create(model="tiny", stream=True, stream_options=options, **asked)
    )
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for choice in chunk.choices:
            assert finish[choice.index] is None
            texts[choice.index] += choice.text
            runs[choice.index] += "".join(run["text"] for run in choice.model_extra["runs"])
            finish[choice.index] = choice.finish_reason
    assert texts == runs == [answer.text for answer in expected]
    assert set(finish) <= {"stop", "length"} and len(chunks) > 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == sum(len(e.completion.tokens) for e in expected)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_what_was_drafted(client, served):
    """Each pass once; the texts of what was kept are those that its run begins with."""
    options = {"include_runs": True, "include_drafts": True}
    asked = {"model": "tiny", "prompt": ASKED, "max_tokens": 40, "stream": True}
    drafts, texts, kept = [], {}, {}
    for chunk in client.completions.create(**asked, stream_options=options):
        [choice] = chunk.choices
        drafts += choice.model_extra["drafts"]
        for each in choice.model_extra["runs"]:
            texts[each["run"]] = texts.get(each["run"], "") + each["text"]
            kept[each["run"]] = each["kept"]
        calls = choice.model_extra["calls"]
    assert [draft["run"] for draft in drafts] == list(range(1, calls + 1)) and any(kept.values())
    for draft in drafts:
        assert len(draft["texts"]) == len(draft["parents"]) == len(draft["kept"]) > 1
        path = [text for text, on in zip(draft["texts"], draft["kept"], strict=True) if on]
        run = draft["run"]
        if run in kept and "\ufffd" not in "".join(path):
            assert len(path) - 1 == kept[run]
            assert texts[run].startswith("".join(path[1:]))
    for chunk in client.completions.create(**asked):
        assert "drafts" not in chunk.choices[0].model_extra
    served.wait_idle()


def test_who_wants_no_drafts_gets_the_same_text(run, client):
    found = client.completions.create(
        model="tiny", prompt=ASKED, max_tokens=12, extra_body={"drafting": False}
    )
    assert found.choices[0].text == run.generate(ASKED, max_new_tokens=12)[0].text
    assert found.model_extra["metrics"]["speculative_decoding"] is None


def test_a_chat_streams(run, client):
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=CHAT, stream=True, stream_options=options
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == run.chat(CHAT).text
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].model_extra["metrics"]["speculative_decoding"]["num_spec_tokens"] == 2


def test_stop_strings_end_text_and_give_the_slot_back(run, client, served):
    whole = run.generate(ASKED, max_new_tokens=48)[0].text
    stop = whole[5:7]
    [expected] = run.generate(ASKED, max_new_tokens=48, stop=stop)
    asked = {"model": "tiny", "prompt": ASKED, "max_tokens": 48, "stop": [stop]}
    found = client.completions.create(**asked)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected.text, "stop")
    assert found.usage.completion_tokens == len(expected.completion.tokens)
    streamed = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected.text
    served.wait_idle()


def test_ids_of_prompts_and_ends(run, client):
    ids = run.encode_prompt(ASKED, raw=True)
    [expected] = run.generate(ids, max_new_tokens=12)
    asked = {"model": "tiny", "prompt": ids, "max_tokens": 12}
    assert client.completions.create(**asked).choices[0].text == expected.text
    raw = asked | {"prompt": ASKED, "extra_body": {"raw": True}}
    assert client.completions.create(**raw).choices[0].text == expected.text
    end = expected.completion.tokens[4]
    count = 1 + expected.completion.tokens.index(end)
    found = client.completions.create(**asked, extra_body={"stop_token_ids": [end]})
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (count, "stop")
    found = client.completions.create(**asked, extra_body={"ignore_eos": True})
    assert found.usage.completion_tokens == 12


def test_log_probs_are_those_of_generate(run, client):
    [expected] = run.generate(ASKED, max_new_tokens=12, log_probs=True)
    completion = expected.completion
    found = client.completions.create(model="tiny", prompt=ASKED, max_tokens=12, logprobs=0)
    told = found.choices[0].logprobs
    assert told.token_logprobs == pytest.approx(completion.log_probs, abs=1e-4)
    assert len(told.tokens) == len(told.text_offset) == 12
    message = [{"role": "user", "content": ASKED}]
    pieces = []
    for chunk in client.chat.completions.create(
        model="tiny", messages=message, max_tokens=12, logprobs=True, stream=True
    ):
        pieces += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [piece.logprob for piece in pieces] == pytest.approx(completion.log_probs, abs=1e-4)
    spelled = b"".join(bytes(piece.bytes) for piece in pieces)
    assert spelled.decode(errors="replace").removeprefix(" ") == expected.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "other"}, "NotFoundError", "no model 'other'"),
        ({"prompt": ""}, "BadRequestError", "empty"),
        ({"prompt": []}, "BadRequestError", "empty"),
        ({"prompt": "x" * 200}, "BadRequestError", "at most 64"),
        ({"prompt": [10**6]}, "BadRequestError", "id outside"),
        ({"prompt": [1, "a"]}, "BadRequestError", "prompt"),
        ({"max_tokens": 49}, "BadRequestError", "49 new tokens"),
        ({"max_tokens": "many"}, "BadRequestError", "max_tokens"),
        ({"temperature": -1}, "BadRequestError", "temperature"),
        ({"top_p": 0}, "BadRequestError", "top_p"),
        ({"n": 5}, "BadRequestError", "5 completions"),
        ({"logprobs": 3}, "BadRequestError", "3 likeliest tokens"),
        ({"echo": True}, "BadRequestError", "echo"),
        ({"suffix": "end"}, "BadRequestError", "suffix"),
        ({"presence_penalty": 1.0}, "BadRequestError", "may choose temperature"),
        ({"frequency_penalty": 1.0}, "BadRequestError", "frequency penalty"),
        ({"logit_bias": {"1": 5}}, "BadRequestError", "logit_bias"),
        ({"seed": 2**31}, "BadRequestError", "seed"),
    ],
)
def test_what_cannot_be_served_is_refused(client, change, error, message):
    """In the form of OpenAI's errors, before a stream begins too."""
    for stream in (False, True):
        with pytest.raises(getattr(openai, error), match=message) as caught:
            client.completions.create(**{"model": "tiny", "prompt": ASKED} | change, stream=stream)
        assert {"message", "type", "param", "code"} == caught.value.body.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"logprobs": True, "top_logprobs": 2},
    ],
)
def test_chats_that_cannot_be_served_are_refused(client, change):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{"model": "tiny", "messages": CHAT} | change)


def test_models_and_state(client, served):
    [model] = client.models.list()
    assert (model.id, model.model_extra["root"], model.model_extra["parent"]) == (
        "tiny",
        "tiny",
        None,
    )
    assert model.model_extra["max_model_len"] == 64 + 48
    assert get(served, "/health") == get(served, "/ready") == ""


def test_text_to_ids_and_back(run, served):
    asked = {"prompt": ASKED, "add_special_tokens": False}
    found = post(served, "/tokenize", asked)
    assert found["tokens"] == run.tokenizer.encode(ASKED)
    assert found["count"] == len(found["tokens"])
    assert post(served, "/detokenize", {"tokens": found["tokens"]}) == {"prompt": ASKED}
    assert post(served, "/tokenize", {"messages": CHAT})["tokens"] == run.encode_prompt(
        tuple(CHAT), raw=False
    )


def test_figures_add_up(client, served):
    """Counters before and after one request, under the names of vLLM."""

    def read():
        text = get(served, "/metrics")
        samples = re.findall(r"^(vllm:\S+?)(\{.*?\})? (\S+)$", text, re.MULTILINE)
        labels = '{engine="0",model_name="tiny"'
        assert all(set(labels[1:].split(",")) <= set(re.split("[{,}]", at)) for _, at, _ in samples)
        found = {}
        for name, at, value in samples:
            position = re.search(r'position="(\d+)"', at)
            found[name + (f"/{position[1]}" if position else "")] = float(value)
        return found

    before = read()
    answer = client.completions.create(model="tiny", prompt=ASKED, max_tokens=12)
    after = read()
    drafting = answer.model_extra["metrics"]["speculative_decoding"]

    def grown(name):
        return after[f"vllm:{name}"] - before[f"vllm:{name}"]

    assert grown("generation_tokens_total") == 12
    assert grown("prompt_tokens_total") == answer.usage.prompt_tokens
    assert grown("spec_decode_num_drafts_total") == drafting["num_spec_steps"]
    assert grown("spec_decode_num_draft_tokens_total") == drafting["num_draft_tokens"]
    kept = drafting["num_accepted_draft_tokens"]
    assert grown("spec_decode_num_accepted_tokens_total") == kept
    per_depth = "spec_decode_num_accepted_tokens_per_pos_total"
    assert sum(grown(f"{per_depth}/{depth}") for depth in range(2)) == kept
    assert grown("time_to_first_token_seconds_count") == 1
    assert grown("e2e_request_latency_seconds_count") == 1
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
