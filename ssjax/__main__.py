"""Lists the verbs, or runs one: `python -m ssjax`, and the console script `ssjax`."""

import sys

from ssjax.cli import verbs


def main() -> int:
    """Runs the verb of the command line; returns the exit code."""
    return verbs.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
