"""The page in a browser: what a person sees, hears and can reach with the keyboard alone."""

import contextlib
import json
import re
import shutil
import socket
import threading
import time
import urllib.parse

import pytest

pytestmark = pytest.mark.stress

ASKED = "two tickets to the sea"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
# Without a display, and without asking any other host for anything.
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
)
SECONDS = 120

# What of the text that is seen has too little contrast, by the formula of WCAG 2.
LOW_CONTRAST = """
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
return [...document.body.querySelectorAll("*")].filter((element) => {
  const text = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
  return text && element.checkVisibility() && !element.disabled && !element.closest("script");
}).map((element) => {
  const pair = [light(getComputedStyle(element).color), light(ground(element))];
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  return [element.outerHTML.slice(0, 60), ratio];
}).filter(([, ratio]) => ratio < 4.5);
"""


class Proxy:
    """Passes bytes on to a server; cuts one answer after some events of a stream if asked to."""

    def __init__(self, url):
        place = urllib.parse.urlsplit(url)
        self._server = place.hostname, place.port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.cut_after = None  # events
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """Everybody is cut off, and nobody is let in any more."""
        for each in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._server)
                self._sockets += client, server
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source, target):
        with source, target, contextlib.suppress(OSError):
            events = 0
            while content := source.recv(65536):
                target.sendall(content)
                events += content.count(b"data: {")
                if self.cut_after is not None and events >= self.cut_after:
                    self.cut_after = None
                    break
            for each in (source, target):
                each.shutdown(socket.SHUT_RDWR)


class Page:
    """The page as a person uses it."""

    def __init__(self, driver):
        from selenium.webdriver.common.by import By

        self.driver, self._by = driver, By.CSS_SELECTOR

    def open(self, url):
        self.driver.get(url)
        self.wait(lambda: self.all("#model option"))

    def all(self, selector):
        return self.driver.find_elements(self._by, selector)

    def one(self, selector):
        return self.driver.find_element(self._by, selector)

    def text(self, selector):
        """As it stands in the document, white space and all."""
        return self.one(selector).get_property("textContent")

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, SECONDS, poll_frequency=0.05).until(lambda _: condition())

    def keys(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def point_at(self, element):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def ask(self, text=ASKED, *, compare=False, chat=False):
        """Writes a text, sends it and waits for the end."""
        self.one("label[for=is-chat]" if chat else "label[for=is-prompt]").click()
        for selector, value in (("#text", text), ("#max_tokens", "40"), ("#temperature", "0")):
            self.one(selector).clear()
            self.one(selector).send_keys(value)
        if self.one("#compare").is_selected() != compare:
            self.one("#compare").click()
        self.one("#send").click()
        self.wait_for_end()

    def wait_for_end(self):
        self.wait(lambda: self.one("#send").is_enabled())

    @property
    def runs(self):
        """Number, text and classes of the pieces of the answer."""
        return [
            (
                int(each.get_attribute("data-run")),
                each.get_property("textContent"),
                set(each.get_attribute("class").split()) - {"chosen"},
            )
            for each in self.all("#drafted .output span")
        ]

    def numbers(self, column):
        return {
            each.get_attribute("data-of"): each.text for each in self.all(f"#{column} [data-of]")
        }


@pytest.fixture(scope="module")
def driver():
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason='needs the extra "browser"')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, served):
    """Opened, at the size of a desk, in light colours; complaints of the browser fail."""
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.set_window_size(1280, 900)
    driver.get_log("browser")
    page = Page(driver)
    page.open(served.url)
    yield page
    complaints = [each for each in driver.get_log("browser") if each["level"] == "SEVERE"]
    # That a request fails is told by the browser too, where a test wants it to.
    assert not [each for each in complaints if each["source"] != "network"]


@pytest.mark.parametrize("chat", [False, True])
def test_text_streams_in_and_shows_what_each_pass_emitted(page, run, served, monkeypatch, chat):
    slots = served.engine._slots
    run_passes = slots.run

    def slowly(*args, **kwargs):  # passes of a millisecond are over before a browser draws
        time.sleep(0.05)
        run_passes(*args, **kwargs)

    monkeypatch.setattr(slots, "run", slowly)
    [expected] = run.generate(ASKED, max_new_tokens=40)
    completion = expected.completion
    page.js(
        """
        const output = document.querySelector("#drafted .output");
        window.seen = [];
        new MutationObserver(() => seen.push(output.textContent))
          .observe(output, {childList: true, subtree: true, characterData: true});
        """
    )
    page.ask(chat=chat)
    assert page.text("#drafted .output") == expected.text
    seen = page.js("return seen")
    assert len(set(seen)) > 2 and all(expected.text.startswith(text) for text in seen)
    marked = re.findall(r"\[(.*?)\]", run.mark_runs(completion, expected.text), re.DOTALL)
    # Lengths: a character that is finished by a later pass is shown whole, and marked before.
    assert [len(text) for _, text, _ in page.runs] == list(map(len, marked))
    shaded = [(number, classes) for number, _, classes in page.runs if classes]
    assert shaded and all(completion.kept[number - 1] > 0 for number, _ in shaded)
    shades = [classes & {"a", "b"} for _, classes in shaded]
    assert all(one != other for one, other in zip(shades, shades[1:], strict=False))
    numbers = page.numbers("drafted")
    assert (numbers["tokens"], numbers["calls"]) == ("40", str(completion.calls))
    assert float(numbers["rate"]) == pytest.approx(expected.tokens_per_call, abs=0.006)
    assert re.fullmatch(r"\d+ ms", numbers["first"]) and float(numbers["speed"]) > 0
    shares = [round(100 * passes / completion.calls) for passes in completion.accepted]
    rows = [each.text.split() for each in page.all("#depths tr")]
    assert [row[:2] for row in rows] == [[str(d), str(s)] for d, s in enumerate(shares, start=1)]
    assert page.text("#status") == f"Done: 40 tokens in {completion.calls} calls"
    assert page.one("#drafted .output").get_attribute("aria-busy") == "false"
    turns = [each.get_property("textContent") for each in page.all("#turns li")]
    assert turns == ([f"You{ASKED}"] if chat else [])
    assert page.driver.title.startswith("tiny")


def test_the_tree_of_a_pass_by_pointer_and_by_keyboard(page, run):
    """The last pass at first; what is marked as kept begins the text of its run."""
    from selenium.webdriver.common.keys import Keys

    [expected] = run.generate(ASKED, max_new_tokens=40)
    completion = expected.completion
    page.ask()

    def check(number):
        kept = completion.kept[number - 1]
        assert page.text("#caption").startswith(f"Pass {number}: {kept} of ")
        nodes = page.all("#tree .node:not(.root):not(.own)")
        assert f" of {len(nodes)} drafted" in page.text("#caption")
        on_path = [each for each in nodes if "kept" in each.get_attribute("class").split()]
        assert len(on_path) == kept
        said = "".join(page.js("return arguments[0].firstChild.data", each) for each in on_path)
        shown = next((text for run, text, _ in page.runs if run == number), None)
        if shown is not None and "\ufffd" not in said + shown:
            assert shown.replace(" ", "␣").replace("\n", "⏎").startswith(said)

    check(completion.calls)
    best = max(range(1, completion.calls + 1), key=lambda number: completion.kept[number - 1])
    page.point_at(page.one(f"#drafted [data-run='{best}']"))
    check(best)
    page.point_at(page.one("h1"))
    check(completion.calls)
    page.js("document.getElementById('pass').focus()")
    page.keys(Keys.HOME)
    check(1)
    page.keys(Keys.ARROW_RIGHT)
    check(2)
    assert page.one("#pass").get_attribute("aria-valuetext") == page.text("#caption")


def test_against_plain_decoding(page, run):
    [expected] = run.generate(ASKED, max_new_tokens=40)
    page.ask(compare=True)
    texts = {page.text(f"#{column} .output") for column in ("drafted", "plain")}
    assert texts == {expected.text}
    assert page.numbers("plain")["rate"] == "1.00" and page.numbers("plain")["calls"] == "39"
    calls = expected.completion.calls
    verdict = page.text("#verdict")
    assert f"{calls} calls instead of 39: {39 / calls:.2f} times fewer" in verdict
    left, right = (page.one(f"#{column}").rect for column in ("drafted", "plain"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.ask()
    assert not page.one("#plain").is_displayed() and not page.one("#verdict").is_displayed()


def test_a_lost_connection_is_told_and_can_be_tried_again(page, run, served):
    [expected] = run.generate(ASKED, max_new_tokens=40)
    proxy = Proxy(served.url)
    page.open(proxy.url)
    proxy.cut_after = 3
    page.ask()
    kept = page.text("#drafted .output")
    assert kept and expected.text.startswith(kept) and kept != expected.text
    assert "connection was lost after" in page.text("#status")
    assert "error" in page.one("#status").get_attribute("class")
    served.wait_idle()
    page.one("#retry").click()
    page.wait_for_end()
    assert page.text("#drafted .output") == expected.text
    assert "Done" in page.text("#status") and not page.one("#retry").is_displayed()
    proxy.close()
    page.ask()
    assert "cannot be reached" in page.text("#status") and page.one("#retry").is_displayed()


def test_what_is_wrong_is_told(page):
    page.ask("x" * 300)
    assert "at most 64" in page.text("#status") and not page.one("#retry").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_light_and_dark(page, scheme):
    """Nothing sticks out at 360 px; every text has enough contrast."""
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.ask(compare=True, chat=True)
    assert page.js("return document.documentElement.scrollWidth") <= 360
    red = page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 64) == (scheme == "dark")
    assert page.js(LOW_CONTRAST) == []


def test_the_keyboard_reaches_everything_in_order(page):
    from selenium.webdriver.common.keys import Keys

    page.ask()
    page.js("document.activeElement.blur(); scrollTo(0, 0)")
    page.one("h1").click()
    reached = []
    for _ in range(14):
        page.keys(Keys.TAB)
        reached.append(
            page.js("const e = document.activeElement; return e.id || e.parentElement.id")
        )
    settings = ["max_tokens", "temperature", "top_k", "top_p", "seed"]
    after = ["send", "compare", "drafted", "pass", "tree"]
    assert reached[: 3 + len(settings) + len(after)] == [
        *("model", "is-prompt", "text"),
        *settings,
        *after,
    ]
    page.js("document.getElementById('text').focus()")
    page.keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: not page.one("#send").is_enabled() or "Done" in page.text("#status"))
    page.wait_for_end()
    assert json.dumps(page.text("#status")).startswith('"Done')
