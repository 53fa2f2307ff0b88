"""Malformed bodies, clients that leave, a full queue, the key, the end of the server."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from ssjax.errors import UserError
from ssjax.serving.problems import problem_of

ROOT = Path(__file__).parents[2]
ASKED = {"prompt": "two tickets to the sea", "max_tokens": 48, "ignore_eos": True}
JSON = {"Content-Type": "application/json"}
PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")


def call(served, method, path, content=b"", headers=JSON):
    """Status, headers and content of an answer."""
    place = urllib.parse.urlsplit(served.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    try:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def post(served, body, path=PATHS[0], **more):
    return call(served, "POST", path, json.dumps(body).encode(), JSON | more)


def texts_of(served, count):
    """Answers to the same question, each of which must be right."""
    found = [json.loads(post(served, ASKED)[2])["choices"][0]["text"] for _ in range(count)]
    assert len(set(found)) == 1
    return found[0]


def mangled(rng):
    """A body that is damaged in one of many ways."""
    good = json.dumps(ASKED).encode()
    kind = rng.randrange(5)
    if kind == 0:
        return good[: rng.randrange(len(good))]
    if kind == 1:
        place = rng.randrange(len(good))
        return good[:place] + bytes([rng.randrange(256)]) + good[place + 1 :]
    if kind == 2:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    values = (None, [], {}, "x", -1, 1e400, 10**30, True, [[]], [{}], "\ud800", "NaN", 0.5)
    if kind == 3:
        names = ("prompt", "messages", "tokens", "max_tokens", "temperature", "n", "stop", "seed")
        return json.dumps(ASKED | {rng.choice(names): rng.choice(values)}).encode()
    return json.dumps(rng.choice(values)).encode()


def test_damaged_bodies_are_answered_and_hurt_nobody(served, run):
    """No failure of ours, no path of the machine, and the same right answer afterwards."""
    before, rng = texts_of(served, 1), random.Random(0)
    statuses = set()
    for number in range(200):
        status, _, content = call(served, "POST", PATHS[number % 4], mangled(rng))
        statuses.add(status)
        assert status < 500, content
        assert str(run.workdir).encode() not in content and b"/" + b"usr" not in content
        if status != 200:
            error = json.loads(content)["error"]
            assert error["type"] == "invalid_request_error" and error["message"]
    assert {200, 400} <= statuses
    served.wait_idle()
    assert texts_of(served, 1) == before


def test_bodies_that_are_too_large_or_of_another_type(served):
    large = post(served, ASKED | {"prompt": "x" * 20_000})
    assert large[0] == 413 and b"10000 bytes" in large[2]
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert post(served, ASKED, **{"Content-Type": kind})[0] == 415
    assert call(served, "GET", PATHS[0])[0] == 405
    assert call(served, "POST", "/v1/nothing")[0] == 404
    for path in ("/docs", "/openapi.json", "/redoc"):
        status, _, content = call(served, "GET", path)
        assert status == 404 and json.loads(content)["error"]["message"]


def test_the_place_of_the_model_is_not_told(served, run):
    for path in ("/v1/models", "/metrics", "/tokenize", "/"):
        status, headers, content = call(served, "GET", path)
        assert path != "/" or "default-src 'none'" in headers["content-security-policy"]
        assert str(run.workdir).encode() not in content and run.workdir.name.encode() not in content
    for said in (
        f"{run.workdir}: the chat template rejects these messages",
        "/weights/some-model/tokenizer.json: the chat template rejects these messages",
        "weights/some-model: the chat template rejects these messages",
    ):
        told = str(problem_of(UserError(said), str(run.workdir)))
        assert told == "the model: the chat template rejects these messages"


def test_clients_that_leave_give_their_slots_back(served):
    """Before, during and after the first tokens, streaming or not; others get their answers."""
    expected, rng = texts_of(served, 1), random.Random(1)
    place = urllib.parse.urlsplit(served.url)
    for number in range(30):
        body = json.dumps(ASKED | {"stream": bool(number % 2)}).encode()
        with socket.create_connection((place.hostname, place.port)) as client:
            head = (
                f"POST {PATHS[0]} HTTP/1.1\r\nHost: {place.hostname}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            whole = head.encode() + body
            client.sendall(whole if number % 5 else whole[: rng.randrange(len(whole))])
            if number % 3 == 0:
                client.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    client.recv(100)
        if number % 10 == 9:
            served.wait_idle()
            assert texts_of(served, 1) == expected
    served.wait_idle()


def test_who_comes_when_the_queue_is_full_is_told_to_come_again(served):
    """At once: three run, four wait, the others are refused; every answer given is right."""
    expected = texts_of(served, 1)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(served, ASKED), range(32)))
    refused = [answer for answer in answers if answer[0] != 200]
    assert 0 < len(refused) < 32
    for status, headers, content in refused:
        assert status == 429 and int(headers["retry-after"]) > 0
        assert json.loads(content)["error"]["type"] == "rate_limit_error"
    for status, _, content in answers:
        if status == 200:
            assert json.loads(content)["choices"][0]["text"] == expected
    served.wait_idle()


def test_slow_readers_hold_nobody_up(served):
    """A stream that nobody reads ends by itself."""
    place = urllib.parse.urlsplit(served.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("POST", PATHS[0], json.dumps(ASKED | {"stream": True}).encode(), JSON)
    served.wait_idle()
    assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_the_key_guards_every_path_but_health(serve):
    with serve(api_key="open-sesame") as served:
        assert call(served, "GET", "/health")[0] == 200
        password = base64.b64encode(b"anyone:open-sesame").decode()
        good = ({"Authorization": "Bearer open-sesame"}, {"Authorization": f"Basic {password}"})
        bad = (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer open-sesame2"},
            {"Authorization": "open-sesame"},
            {"Authorization": "Basic !!"},
            {"Authorization": "Basic b3Blbi1zZXNhbWU="},
        )
        for path in ("/", "/metrics", "/v1/models", "/ready", "/nothing", "/health/", "//health"):
            for headers in bad:
                status, told, content = call(served, "GET", path, headers=headers)
                assert status == 401 and "Basic" in told["www-authenticate"]
                assert json.loads(content)["error"]["type"] == "authentication_error"
        for headers in good:
            assert call(served, "GET", "/v1/models", headers=headers)[0] == 200
            assert post(served, ASKED, **headers)[0] == 200
        assert post(served, ASKED)[0] == 401


def test_before_it_is_ready_and_after_it_has_stopped(serve):
    with serve(started=False) as served:
        assert call(served, "GET", "/ready")[0] == 503
        assert call(served, "GET", "/health")[0] == 200
        status, headers, _ = post(served, ASKED)
        assert status == 503 and "retry-after" in headers
    with serve() as served:
        assert call(served, "GET", "/ready")[0] == post(served, ASKED)[0] == 200
        served.engine.stop()
        assert call(served, "GET", "/ready")[0] == post(served, ASKED)[0] == 503


def test_requests_have_their_time(serve):
    with serve(request_seconds=1e-9) as served:
        status, _, content = post(served, ASKED)
        assert status == 504 and b"longer" in content


@pytest.mark.stress
def test_a_signal_lets_accepted_requests_finish(tmp_path):
    """The verb, as a process: listens, is ready, answers while it drains, and ends with 0."""
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""}
    verbs = [sys.executable, "-m"]
    smoke = ["--config", "experiments/dialogsum.py:smoke", f"--workdir={run}"]
    trained = [*verbs, "ssjax.train", *smoke, "--config.train.num_steps=2"]
    subprocess.run(trained, cwd=ROOT, env=environment, check=True, capture_output=True)
    address = tmp_path / "address.json"
    flags = [f"--workdir={run}", "--port=0", f"--json={address}", "--slots=2"]
    process = subprocess.Popen(
        [*verbs, "ssjax.serve", *flags, "--max_output_tokens=300", "--max_prompt_tokens=64"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not address.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        served = Address(json.loads(address.read_text())["url"])
        while call(served, "GET", "/ready")[0] != 200:
            time.sleep(0.1)
        body = ASKED | {"max_tokens": 300, "prompt": "#Person1#: Hello."}
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            answers = [pool.submit(post, served, body) for _ in range(5)]
            while b"requests_running{" not in (text := call(served, "GET", "/metrics")[2]) or (
                b'vllm:num_requests_waiting{engine="0",model_name="run"} 3.0' not in text
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            for answer in answers:
                status, _, content = answer.result()
                assert status == 200
                assert json.loads(content)["usage"]["completion_tokens"] == 300
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a process serves."""

    url: str
