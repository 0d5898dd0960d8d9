"""The command line of the comparison."""

from __future__ import annotations

import sys

from edgellm.benchmarks import result, script
from edgellm.benchmarks.peers import command, table
from edgellm.benchmarks.peers import engine as peers

PROGRAM = "edgellm.benchmarks.peers"


@script.ends
def main() -> None:
    """Measure or read, draw, write."""
    parser = command.parser(
        PROGRAM, "edgellm beside other engines, measured alike.", models=["smollm2"], engines=peers.available()
    )
    arguments = parser.parse_args()
    command.check(arguments)
    run = result.read(arguments.from_json) if arguments.from_json else command.run(arguments, PROGRAM)
    if run is not None:
        command.write(run, table.markdown(run), arguments)


if __name__ == "__main__":
    sys.exit(main())
