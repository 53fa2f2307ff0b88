"""Every command of the documentation names verbs, flags, config keys and files that exist."""

import re
import tomllib

import pytest
import verb_server
from documentation import PAGES, PLACEHOLDER, ROOT, Command, blocks, commands, mentions, verb_of

from ssjax.config import Config, experiment, ranges

FENCED = [command for page in PAGES for command in commands(page)]
OURS = [
    command
    for command in [*FENCED, *(each for page in PAGES for each in mentions(page))]
    if verb_of(command) in verb_server.VERBS
]
FOLDERS = ("benchmarks", "docs", "experiments", "launch", "ssjax", "tests")
SUFFIXES = {"arrow", "json", "jsonl", "parquet", "py", "safetensors"}
# What a verb writes, or a page tells the reader to write.
MADE = {"docs/gpu.json"}


@pytest.fixture(scope="module")
def flags_of():
    """The flags that --help of a verb lists, by verb."""
    server = verb_server.server()
    known = {}
    for verb in {verb_of(command) for command in OURS}:
        told = server.call(verb, ["--help"])
        assert told.returncode == 0, told.stderr
        known[verb] = set(re.findall(r"--(?:\[no\])?([a-z_]+)", told.stdout))
    return known


def test_flags_exist(flags_of):
    for command in OURS:
        for word in command.words:
            name = re.match(r"--([^=]*)", word)
            if name is None or name[1].startswith("config."):
                continue
            flag, known = name[1].replace("-", "_"), flags_of[verb_of(command)]
            assert flag in known or flag.removeprefix("no") in known, f"{word} in {command}"


def test_verbs_exist():
    for command in [*FENCED, *(each for page in PAGES for each in mentions(page))]:
        verb = verb_of(command)
        placeholder = PLACEHOLDER.fullmatch(verb.split(" ")[0])
        assert not verb or placeholder or verb in verb_server.VERBS, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_exist(page):
    known = set(ranges.keys(Config))
    groups = {key.rpartition(".")[0] for key in known}
    text = page.read_text()
    for key in re.findall(r"--(?:no)?config\.([a-z_.]+[a-z_])", text):
        assert key in known, f"{page}: --config.{key}"
    # Inside a sentence, `group.key` or `group.key=value`.
    for group, key in re.findall(r"`(?:config\.)?([a-z_]+)\.([a-z_0-9]+)(?:=[^`]*)?`", text):
        if group in groups and key not in SUFFIXES:
            assert f"{group}.{key}" in known, f"{page}: {group}.{key}"


def test_experiments_with_what_is_changed_of_them_can_be_read():
    for command in OURS:
        arguments, changes = experiment.split_overrides(command.words)
        changes = {key: value for key, value in changes.items() if not PLACEHOLDER.search(value)}
        for name, value in zip(arguments, arguments[1:], strict=False):
            if name == "--config" and (ROOT / value.partition(":")[0]).exists():
                experiment.load(str(ROOT / value), changes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    for name in re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)", text):
        assert name in MADE or list(ROOT.glob(name)), f"{page}: {name}"


def test_scripts_have_their_flags():
    for command in FENCED:
        match command.words:
            case ["python", script, *arguments] if script.startswith("benchmarks/"):
                source = (ROOT / script).read_text()
                for flag in re.findall(r"--([a-z_]+)", " ".join(arguments)):
                    assert f'"{flag}"' in source or f"--{flag}" in source, command


def test_experiments_that_pages_print_can_be_read(tmp_path):
    for page in PAGES:
        for title, content in blocks(page, "python"):
            if "def get_config" in content:
                (tmp_path / title).write_text(content)
                experiment.load(str(tmp_path / title), {})


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in PAGES:
        for named in re.findall(r'pip install -e "\.\[([a-z,]+)\]"', page.read_text()):
            assert set(named.split(",")) <= set(project["optional-dependencies"]), page


def test_a_wrong_command_would_be_seen():
    command = Command(ROOT / "README.md", "python -m ssjax.train --config FILE --no-such 1", "")
    assert verb_of(command) == "train" and "--no-such" in command.words
    assert not PLACEHOLDER.fullmatch("runs/dialogsum") and PLACEHOLDER.fullmatch("PROMPTS.jsonl")


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
