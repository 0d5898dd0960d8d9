"""Files that appear whole or not at all: written beside their place under a hidden name, and renamed when they are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgellm.errors import ResourceError


@contextlib.contextmanager
def whole(target: Path, fix: str = "choose another file") -> Iterator[Path]:
    """Where to write what is to be `target`, whose folder is there; nothing stays of it where the block raises.

    Raises:
        ResourceError: it cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        raise ResourceError(f"cannot write: {error.strerror or error}", where=target, fix=fix) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
