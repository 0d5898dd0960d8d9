"""Every error that edgellm raises on purpose.

    EdgeError
    ├── SourceError        a model source (GGUF, safetensors folder, hub id, adapter) is missing, damaged or unsupported
    ├── BundleError        a bundle is missing, damaged, from a later format, or cannot be written
    ├── RuntimeUnavailable a runtime's package is not installed or does not fit this machine
    ├── FidelityError      a converted model says too little of what its source says
    ├── ResourceError      too little memory or disk for what was asked
    ├── InferenceError     a loaded model failed while it ran
    └── UsageError         an argument that makes no sense for this model

The command line prints one as a single line and exits non-zero.
"""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """A text that is safe to print: control characters and lone surrogates, which a name in a model file may hold and a
    terminal would obey or refuse, are written as escapes."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


class EdgeError(Exception):
    """What went wrong, where, and what to do about it, in one line.

    Args:
        what: the fault itself, without a full stop.
        where: the file, tensor, field or argument it was found in.
        fix: what the user can do.
    """

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        line = what if self.where is None else f"{self.where}: {what}"
        line = line if fix is None else f"{line}; {fix}"
        super().__init__(plain(" ".join(line.split())))


class SourceError(EdgeError):
    """A model source is missing, damaged or not supported."""


class BundleError(EdgeError):
    """A bundle is missing, damaged, of a later format, or cannot be written."""


class RuntimeUnavailable(EdgeError):
    """A runtime's package is not installed or does not fit this machine."""


class FidelityError(EdgeError):
    """A converted model lost more than its gate allows, or does not compute what was quantized."""


class ResourceError(EdgeError):
    """Too little memory or disk for what was asked."""


class InferenceError(EdgeError):
    """A loaded model failed while it ran: a native error of its runtime, or logits that are no numbers."""


class UsageError(EdgeError):
    """An argument that makes no sense for this model."""
