"""How a command ends that is no subcommand of `edgellm`: `python -m edgellm.benchmarks.page` and its like.

Their `main` is decorated with `ends`, and called by `sys.exit(main())`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from edgellm.errors import EdgeError

INTERRUPTED = 130


def say(step: str) -> None:
    """What is being done, for who waits."""
    print(step, file=sys.stderr, flush=True)


def ends(main: Callable[[], None]) -> Callable[[], int]:
    """`main` with an exit status: 0 where it went well, 1 with the error in one line, 130 where the user interrupted it."""

    @functools.wraps(main)
    def ended() -> int:
        try:
            main()
        except EdgeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        return 0

    return ended
