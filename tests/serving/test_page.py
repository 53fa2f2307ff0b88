"""The page: nothing from other hosts, and every control has a name; test_browser.py uses it."""

import base64
import hashlib
import html.parser
import re

from ssjax.serving.page import content_policy, page

PAGE = page()


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
    assert not re.findall(r"https?://|innerHTML|style=|\son\w+=|\{page\.", PAGE)
    for tag, attributes in Tags(PAGE).found:
        assert tag in ("link",) or not {"src", "href"} & attributes.keys()
        assert attributes.get("href", "data:,") == "data:,"


def test_every_control_has_a_name():
    tags = Tags(PAGE).found
    named = {attributes["for"] for tag, attributes in tags if "for" in attributes}
    for tag, attributes in tags:
        if tag in ("textarea", "input", "select"):
            assert attributes["id"] in named
    assert ("html", {"lang": "en"}) in tags
    assert "prefers-color-scheme: dark" in PAGE and "width=device-width" in PAGE
    assert 'role="status"' in PAGE
