"""The page: nothing from other hosts, every control has a name, and its script shows what comes."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from ssjax.serving.page import content_policy

ASKED = "two tickets to the sea"
HERE = Path(__file__).parent
PAGE = resources.files("ssjax.serving").joinpath("page.html").read_text()


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_policy_lets_the_page_run_and_nothing_else():
    policy = content_policy(PAGE)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"https?://|innerHTML|style=|\son\w+=", PAGE)
    for tag, attributes in Tags(PAGE).found:
        assert tag in ("link",) or not {"src", "href"} & attributes.keys()
        assert attributes.get("href", "data:,") == "data:,"


def test_every_control_has_a_name():
    tags = Tags(PAGE).found
    named = {attributes["for"] for tag, attributes in tags if "for" in attributes}
    for tag, attributes in tags:
        if tag in ("textarea", "input") and attributes.get("type") != "radio":
            assert attributes["id"] in named
    assert ("html", {"lang": "en"}) in tags
    assert "prefers-color-scheme: dark" in PAGE and "width=device-width" in PAGE
    assert 'role="status"' in PAGE


@pytest.fixture(scope="module")
def driven(served, tmp_path_factory):
    """What the script shows of an answer to a text; runs it in node."""
    if not shutil.which("node"):
        pytest.skip("needs node")
    script = tmp_path_factory.mktemp("page") / "script.js"
    script.write_text(re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)[0])

    def drive(kind, text, url=served.url):
        arguments = ["node", HERE / "page_driver.js", url, kind, text, script]
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return drive


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["prompt", "chat"])
def test_the_script_shows_what_each_pass_emitted(driven, run, kind):
    [expected] = run.generate(ASKED, max_new_tokens=40)
    completion, shown = expected.completion, driven(kind, ASKED)
    assert (shown["text"], shown["title"], shown["failed"]) == (expected.text, "tiny", False)
    marked = re.findall(r"\[(.*?)\]", run.mark_runs(completion, expected.text), re.DOTALL)
    # Lengths: a character that is finished by a later pass is shown whole, and marked before.
    assert [len(each["textContent"]) for each in shown["runs"]] == list(map(len, marked))
    kept = [each for each in completion.kept if each]
    shaded = [each for each in shown["runs"] if each["className"]]
    assert 0 < len(shaded) <= len(kept)
    assert all("in one pass" in each["title"] for each in shaded)
    shades = [each["className"] for each in shaded]
    assert all(one != other for one, other in zip(shades, shades[1:], strict=False))
    numbers = shown["numbers"]
    assert (numbers["tokens"], numbers["calls"]) == ("40", str(completion.calls))
    assert float(numbers["rate"]) == pytest.approx(expected.tokens_per_call, abs=0.006)
    assert "ms" in numbers["first"] and sum(shown["passes"]) == completion.calls
    assert shown["turns"] == (
        [f"user: {ASKED}", f"assistant: {expected.text}"] if kind == "chat" else []
    )


@pytest.mark.stress
def test_the_script_says_what_is_wrong(driven):
    shown = driven("prompt", "x" * 300)
    assert shown["failed"] and "at most 64" in shown["status"]
    shown = driven("prompt", ASKED, url="http://127.0.0.1:9")
    assert shown["failed"] and "cannot be reached" in shown["status"]
