"""The `edgellm` command, also as `python -m edgellm`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: Ctrl-C while the command line is imported ends as quietly as it does later."""
    try:
        from edgellm.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)  # edgellm.cli.INTERRUPTED
    command()


if __name__ == "__main__":
    main()
