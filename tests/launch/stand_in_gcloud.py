"""A stand-in for `gcloud compute tpus`: logs its arguments, answers from a script.

The directory STAND_IN holds script.json: `states` for describe (MISSING and ERROR fail as gcloud
does), exit codes for `create`, `delete`, `setup` and `train`. An answer is used once; a call that
nobody expected, or that the script has no answer for, is written to `unexpected` and fails.
"""

import json
import os
import sys
from pathlib import Path

HOME = Path(os.environ["STAND_IN"])
UNEXPECTED = 99
ERRORS = {"MISSING": "NOT_FOUND: Resource was not found", "ERROR": "UNAVAILABLE: try again"}


def refuse(why: str):
    """Leaves a note for the test and fails."""
    (HOME / "unexpected").open("a").write(f"{why}: {sys.argv[1:]}\n")
    sys.exit(UNEXPECTED)


def answer(kind: str):
    """Takes the next answer of a kind from the script."""
    path = HOME / "script.json"
    script = json.loads(path.read_text())
    if not script.get(kind):
        refuse(f"no answer for {kind}")
    first = script[kind].pop(0)
    path.write_text(json.dumps(script))
    return first


def describe():
    """Prints the next state, or fails as gcloud does."""
    state = answer("states")
    if state in ERRORS:
        sys.exit(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {ERRORS[state]}")
    print(state)


def ssh(argv: list[str]):
    """Exits with the next code for what the command does on the hosts."""
    [command] = [a.removeprefix("--command=") for a in argv if a.startswith("--command=")]
    if " -m ssjax.train " in command:
        sys.exit(answer("train"))
    if command.endswith("tpu_startup.sh environment"):
        sys.exit(answer("setup"))
    if not command.startswith(("tail ", "pkill ")):
        refuse("unknown command")


def main(argv: list[str]):
    """Logs the call and answers it."""
    with (HOME / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(argv) + "\n")
    match argv:
        case ["compute", "tpus", "queued-resources", "describe", _, *_]:
            describe()
        case ["compute", "tpus", "queued-resources", ("create" | "delete") as verb, _, *_]:
            sys.exit(answer(verb))
        case ["compute", "tpus", "tpu-vm", "ssh", _, *_]:
            ssh(argv)
        case _:
            refuse("unknown call")


main(sys.argv[1:])
