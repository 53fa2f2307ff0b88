"""Pictures of the server's page for the guide: a desk in light colours, a phone in dark ones.

    python -m ssjax.serve --workdir RUN
    python benchmarks/page_pictures.py --prompt TEXT --output docs/guides/pictures

Needs the extra "browser", Chromium and its driver.
"""

import shutil
from pathlib import Path

from absl import flags

from ssjax.cli import start
from ssjax.errors import UserError
from ssjax.messages import say

_URL = flags.DEFINE_string("url", "http://127.0.0.1:8000", "Of the server.")
_PROMPT = flags.DEFINE_string("prompt", None, "What is asked.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the pictures.", required=True)
_SECONDS = flags.DEFINE_integer("seconds", 300, "That both answers may take.", lower_bound=1)

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage"
)
# Name, width and least height in pixels, colours, against plain decoding.
_PICTURES = (("desk", 1100, 600, "light", True), ("phone", 360, 640, "dark", False))


def main() -> int:
    """Takes the pictures; returns the exit code."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        raise UserError("there is no chromium or no chromedriver; install both")
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        raise UserError('selenium is missing; pip install "ssjax[browser]"') from None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in _FLAGS.split():
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    try:
        for picture in _PICTURES:
            _take(driver, *picture)
    finally:
        driver.quit()
    return 0


def _take(driver, name: str, width: int, height: int, scheme: str, compare: bool) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    def size(height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def at(selector: str):
        return driver.find_element(By.CSS_SELECTOR, selector)

    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size(height)
    driver.get(_URL.value)
    at("#text").send_keys(_PROMPT.value)
    if compare:
        at("#compare").click()
    at("#send").click()
    waiting = WebDriverWait(driver, _SECONDS.value)
    waiting.until(lambda _: at("#send").is_enabled() and at("#details").is_displayed())
    # A pass that drafted and kept something.
    driver.execute_script(
        "const runs = [...document.querySelectorAll('#drafted .output .run')];"
        "const run = runs[Math.floor(runs.length / 2)];"
        "if (run) run.click(); document.activeElement.blur(); scrollTo(0, 0);"
    )
    size(max(height, driver.execute_script("return document.body.scrollHeight")))
    path = Path(_OUTPUT.value) / f"page-{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(driver.get_screenshot_as_png())
    say(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    start.run(main)
