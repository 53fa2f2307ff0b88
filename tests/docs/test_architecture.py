"""docs/architecture.md names rooms and modules that exist, and every room."""

import re

from documentation import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROWS = re.findall(r"^\| `(ssjax/[\w/]+/)` \|.*\| (.*) \|$", PAGE, re.MULTILINE)


def test_every_room_has_a_row():
    rooms = {f"{path.parent.relative_to(ROOT)}/" for path in ROOT.glob("ssjax/*/**/__init__.py")}
    assert {room for room, _ in ROWS} == rooms


def test_modules_exist():
    for room, modules in ROWS:
        for module in re.findall(r"`(\w+\.py)`", modules):
            assert (ROOT / room / module).exists(), f"{room}{module}"


def test_the_picture_has_every_storey():
    contract = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[\n(.*?)\]", contract, re.MULTILINE | re.DOTALL)[1]
    picture = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
    assert set(re.findall(r"\w+", layers)) <= set(re.findall(r"\w+", picture))
