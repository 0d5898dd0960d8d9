"""edgellm: language models as edge bundles.

    import edgellm

    edgellm.convert("model.gguf", "bundle")
    with edgellm.load("bundle") as llm:
        print(llm.generate("The capital of France is", max_tokens=16).text)

Importing this module imports no runtime, no tokenizer and no converter; each comes with the first call that needs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgellm._version import __version__
from edgellm.errors import (
    BundleError,
    EdgeError,
    FidelityError,
    InferenceError,
    ResourceError,
    RuntimeUnavailable,
    SourceError,
    UsageError,
)

if TYPE_CHECKING:
    from edgellm.bundle import Bundle
    from edgellm.conversion import convert
    from edgellm.llm import LLM
    from edgellm.stream import Output, Stream

__all__ = [
    "LLM",
    "Bundle",
    "BundleError",
    "EdgeError",
    "FidelityError",
    "InferenceError",
    "Output",
    "ResourceError",
    "RuntimeUnavailable",
    "SourceError",
    "Stream",
    "UsageError",
    "__version__",
    "convert",
    "load",
]

LOADS = 3  # attempts of a load, which begins anew where the bundle became another one meanwhile


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    threads: int | None = None,
    max_context: int | None = None,
    require_signature: str | os.PathLike[str] | None = None,
) -> LLM:
    """Open a bundle and load its model; where an update comes in between, the new bundle from the beginning.

    Args:
        path: the bundle's folder.
        runtime: which of the bundle's graphs to load, "onnx" or "tflite"; None takes the one that `edgellm tune` or
            `edgellm bench` found to be fastest on this machine, else "onnx" where it is there, else the first that is
            installed.
        threads: threads of a step; None takes what `edgellm tune` found, else what fits the machine.
        max_context: tokens that prompt and answer may have together; None takes what the bundle was made for.
        require_signature: file of a public key, PEM: nothing but a bundle that its owner signed (`edgellm sign`) is loaded.
            Every file is then hashed at every load, LiteRT packs its weights anew and keeps them in memory, and
            `cryptography` has to be installed.

    Raises:
        BundleError: no bundle there, a damaged one, one of a later format, or one without that signature.
        RuntimeUnavailable: the runtime's package is missing, or the one that checks signatures.
        ResourceError: too little memory.
        UsageError: an argument out of range.
    """
    from pathlib import Path

    from edgellm.swap import staying

    for _ in range(LOADS):
        with staying(Path(path)) as stays:
            try:
                llm = _load(path, runtime, threads, max_context, require_signature)
            except EdgeError:
                if stays():
                    raise
            else:
                if stays():
                    return llm
                llm.close()  # files of two bundles, of which one was looked at and the other one was not
    raise BundleError("it is changed again and again while it is loaded", where=path, fix="load it when that is over")


def _load(
    path: str | os.PathLike[str],
    runtime: str | None,
    threads: int | None,
    max_context: int | None,
    require_signature: str | os.PathLike[str] | None,
) -> LLM:
    """`load` of a folder that stays what it is: every file is opened by its name."""
    from contextlib import nullcontext

    from edgellm.bundle import Bundle
    from edgellm.llm import LLM
    from edgellm.runtimes import open_runtime
    from edgellm.runtimes.weight_cache import without_packed_weights
    from edgellm.tokenizer import Tokenizer

    bundle = Bundle.open(path)
    if require_signature is None:
        bundle.ensure_verified()
    else:
        from edgellm import signature

        signature.check(bundle, require_signature)
        bundle.verify()  # the stamp of an earlier time speaks of accidents only, and so does the record of packed weights
    tokenizer = Tokenizer.open(bundle)
    with nullcontext() if require_signature is None else without_packed_weights():
        loaded = open_runtime(bundle, name=runtime, threads=threads, max_context=max_context)
    return LLM(bundle, loaded, tokenizer)


def __getattr__(name: str) -> Any:
    """Names that are imported when they are first used."""
    if name == "convert":
        from edgellm.conversion import convert

        return convert
    if name == "Bundle":
        from edgellm.bundle import Bundle

        return Bundle
    if name == "LLM":
        from edgellm.llm import LLM

        return LLM
    if name in ("Output", "Stream"):
        from edgellm import stream

        return getattr(stream, name)
    raise AttributeError(f"module 'edgellm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
