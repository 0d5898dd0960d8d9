"""The command line of the comparison."""

from __future__ import annotations

import sys

from edgellm.benchmarks import result
from edgellm.benchmarks.peers import command, table
from edgellm.benchmarks.peers import engine as peers
from edgellm.errors import EdgeError

PROGRAM = "edgellm.benchmarks.peers"


def main() -> int:
    """Measure or read, draw, write."""
    parser = command.parser(
        PROGRAM, "edgellm beside other engines, measured alike.", models=["smollm2"], engines=peers.available()
    )
    arguments = parser.parse_args()
    try:
        command.check(arguments)
        run = result.read(arguments.from_json) if arguments.from_json else command.run(arguments, PROGRAM)
        if run is not None:
            command.write(run, table.markdown(run), arguments)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
