"""What every checkpoint reader gives: config, tensors by name, and everything about text.

One reader is one file of this folder. The rest of the converter knows only this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from edgellm.bundle import Provenance
from edgellm.converters.weights import LazyTensor

Naming = Literal["hf", "gguf"]


@dataclass(frozen=True)
class Text:
    """Tokenizer, chat template and the policies that the model's authors set.

    Attributes:
        tokenizer: the content of a tokenizer.json (UTF-8); adds the beginning-of-text token itself where the
            model wants one.
        tokenizer_config: special tokens by role ("bos_token", "eos_token", ...), as in tokenizer_config.json.
        chat_template: Jinja source, or None.
        bos_id: beginning of text, or None.
        eos_ids: every id that ends a text or a turn, most usual first.
        pad_id: padding, or None.
        generation: the authors' sampling defaults (temperature, top_k, top_p, min_p, repetition_penalty), those that are set.
    """

    tokenizer: bytes
    tokenizer_config: Mapping[str, Any]
    chat_template: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    generation: Mapping[str, float] = field(default_factory=dict)


class Checkpoint(Protocol):
    """An opened model source. Close it to release mapped files; it is a context manager too.

    Attributes:
        naming: whose tensor names `tensor` takes: transformers' or GGUF's.
        config: for "hf" the content of config.json, for "gguf" the metadata of the file (key to value, arrays of the
            tokenizer left out).
        architecture: "llama", "gemma3", ...: which file of `architectures/` describes it.
    """

    naming: Naming
    config: Mapping[str, Any]
    architecture: str
    provenance: Provenance

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        ...

    def tensor(self, name: str) -> LazyTensor:
        """A tensor by the checkpoint's own name; SourceError if it is missing or of an unsupported type."""
        ...

    def text(self) -> Text:
        """Tokenizer and policies; SourceError if the source has no usable tokenizer."""
        ...

    def licenses(self) -> Mapping[str, bytes]:
        """Licence and notice files to carry along: name to content."""
        ...

    def close(self) -> None:
        """Release mapped files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
