"""A text of a user's own, as a file: what calibration and evaluation take in place of those that come with edgellm."""

from __future__ import annotations

from pathlib import Path

from edgellm.errors import UsageError

MAX_BYTES = 64 << 20


def read(path: Path, option: str) -> str:
    """The content of a UTF-8 file.

    Args:
        option: the argument that named it, as the user knows it.

    Raises:
        UsageError: it cannot be read, is no UTF-8, too long or empty.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"more than {MAX_BYTES >> 20} MiB", where=path, fix=f"give {option} its first pages")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot be read: {reason or error}", where=path, fix=f"give another {option}") from error
    if not text.strip():
        raise UsageError("there is no text in it", where=path, fix=f"give another {option}")
    return text
