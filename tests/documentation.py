"""The commands and the code of README.md, CONTRIBUTING.md and the pages of docs/."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a reader puts in: DIR, BASE, PROMPTS.jsonl.
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+(\.jsonl)?")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: Path
    text: str  # continuations joined, without its comment
    needs: str  # what the page says that it needs beyond a laptop and a minute; empty: nothing

    @property
    def words(self) -> list[str]:
        """As the shell splits it."""
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language: title (may be empty) and content."""
    fences = re.findall(rf"^```{language}(.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    return [("".join(re.findall(r'title="(.*)"', line)), content) for line, content in fences]


def commands(page: Path) -> list[Command]:
    """Every command of the fenced blocks of a page, in order."""
    found = []
    for _, content in blocks(page, "bash"):
        for line in content.replace("\\\n", " ").splitlines():
            text, _, comment = line.partition("  # ")
            found.append(Command(page, " ".join(text.split("\n")), comment.removeprefix("needs ")))
    return [command for command in found if command.text.strip()]


def mentions(page: Path) -> list[Command]:
    """Every command of ours that a page names inside a sentence or a table."""
    spans = re.findall(r"`((?:python -m ssjax|ssjax )[^`\n]*)`", page.read_text())
    return [Command(page, text, "more words") for text in spans]


def verb_of(command: Command) -> str:
    """The verb of `python -m ssjax.VERB` or `ssjax VERB`; empty: another program."""
    match command.words:
        case ["python", "-m", module, *_] if module.startswith("ssjax."):
            return module.removeprefix("ssjax.")
        case ["ssjax", verb, *_]:
            return verb
    return ""
