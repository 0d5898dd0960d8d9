"""Evaluation: what a bundle's runtimes say of a text, beside its source where that is at hand.

Figures are those of the machine and the runtime that it runs on. A source is read as conversion reads it, and runs in float32
on the numpy back end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm import own_text
from edgellm.bundle import Bundle
from edgellm.card import Gap, Text
from edgellm.errors import SourceError, UsageError
from edgellm.spec import ModelSpec
from edgellm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgellm.benchmarks.judge import Judged
    from edgellm.benchmarks.texts import Pieces
    from edgellm.chat_template import ChatTemplate
    from edgellm.converters import decoder
    from edgellm.converters.replay import Replayed, Tensors

SOURCE = "source"
NO_ADAPTER = "none"
SHOWN = 6  # tokens that differ
BEFORE = 12  # tokens of the text before one of them
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """A token of the text after which the runtime finds another one likeliest than the source does.

    Attributes:
        position: of all positions; `before` is the text that leads there.
        source, runtime: the tokens, as text; `source_probability` and `runtime_probability` are each one's own.
    """

    position: int
    before: str
    source: str
    source_probability: float
    runtime: str
    runtime_probability: float


@dataclass(frozen=True)
class Evaluation:
    """A graph in its runtime.

    Attributes:
        version: package and version of the runtime.
        source, revision, adapter: what it was measured against, as it was given; None where it was not.
        gap: from the source; None where none was given, and then nothing differs either.
        differences: the first tokens that differ.
    """

    bundle: str
    runtime: str
    version: str
    machine: str
    text: Text
    perplexity: float
    source: str | None = None
    revision: str | None = None
    adapter: str | None = None
    source_perplexity: float | None = None
    gap: Gap | None = None
    differences: tuple[Difference, ...] = ()


def evaluate(
    bundle: Bundle,
    *,
    runtimes: Sequence[str],
    against: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    text: str | os.PathLike[str] | None = None,
    on_step: OnStep = lambda step: None,
) -> list[Evaluation]:
    """Let each runtime read a text, one after the other.

    Args:
        runtimes: graphs of the bundle.
        against: the source: a .gguf file, a Hugging Face folder or a hub id; None measures perplexity alone.
        revision: branch, tag or commit of a source on the hub.
        adapter: the PEFT LoRA that was merged when the bundle was made: a folder or a hub id; "none" measures from the plain
            model. A bundle that has one needs either.
        text: a user's file, plain text or .jsonl of conversations; None takes edgellm's own.
        on_step: called with what is done next.

    Raises:
        SourceError: the source cannot be read, or is another model.
        UsageError: the text cannot be read, or nothing is in it; there is no such graph; or it is not said whether the source
            is to have the adapter that the bundle has.
        RuntimeUnavailable, ResourceError, BundleError, InferenceError: as for running it.
    """
    from edgellm.benchmarks import texts
    from edgellm.benchmarks.judge import RUN, judge
    from edgellm.benchmarks.machine import machine
    from edgellm.runtimes import open_runtime

    _check_origin(bundle, against, revision, adapter)
    adapter = None if adapter == NO_ADAPTER else adapter
    content, name = (texts.own(), texts.OWN) if text is None else (read(Path(text), bundle), Path(text).name)
    read_text = pieces(bundle, content, name, texts.POSITIONS["best"])
    pairs = [] if against is None else [(SOURCE, RUN)]
    here, found = machine(), []
    with _source(bundle, against, revision, adapter, read_text, on_step) as models:
        for graph in runtimes:
            on_step(f"measuring {graph}")
            runtime = open_runtime(bundle, name=graph, max_context=max(map(len, read_text.ids)))
            try:
                session = runtime.session()
                judged = judge(models, session, read_text.ids, pairs, bundle.spec.vocab_size)
                session.close()
            finally:
                runtime.close()
            found.append(
                Evaluation(
                    bundle=bundle.path.resolve().name,
                    runtime=runtime.name,
                    version=version(runtime.name),
                    machine=f"{here.cpu}, {here.cores} cores, {here.system}",
                    text=read_text.described(),
                    perplexity=judged.perplexity[RUN],
                    source=against,
                    revision=revision,
                    adapter=adapter,
                    source_perplexity=judged.perplexity.get(SOURCE),
                    gap=None if against is None else judged.apart[SOURCE, RUN].gap(),
                    differences=() if against is None else _differences(judged, read_text, Tokenizer.open(bundle)),
                )
            )
    return found


def pieces(bundle: Bundle, content: Sequence[str], name: str, positions: int) -> Pieces:
    """Texts as a bundle's model reads them; see `edgellm.benchmarks.texts.pieces`."""
    from edgellm.benchmarks import texts

    tokenizer = Tokenizer.open(bundle)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, special=False)

    opening = tokenizer.encode("")
    return texts.pieces(content, name, encode, opening=opening, spec=bundle.spec, positions=positions)


def read(path: Path, bundle: Bundle) -> list[str]:
    """A user's text; of a .jsonl file the conversations, as the bundle's chat template writes them, one behind the other.

    Raises:
        UsageError: it cannot be read, is no UTF-8 or empty, or a line is no conversation.
    """
    content = own_text.read(path, "--text")
    return [content if isinstance(content, str) else content.written(_template(bundle))]


def _template(bundle: Bundle) -> ChatTemplate | None:
    from edgellm.chat_template import ChatTemplate

    if bundle.text.chat_template is None:
        return None
    source = bundle.file(bundle.text.chat_template).read_text(encoding="utf-8")
    return ChatTemplate(source, bundle.text.special_tokens)


def _check_origin(bundle: Bundle, against: str | None, revision: str | None, adapter: str | None) -> None:
    """Whether what was said of the source fits together, and is enough."""
    if against is None:
        for option, value in (("--revision", revision), ("--adapter", adapter)):
            if value is not None:
                raise UsageError("there is no source that it belongs to", where=option, fix="give --against too")
    elif adapter is None and bundle.provenance.adapter is not None:
        raise UsageError(
            f"the bundle has the adapter '{bundle.provenance.adapter}' merged into it, and its source alone has not",
            where="--against",
            fix=f"give its folder or hub id as --adapter, or --adapter {NO_ADAPTER} to measure from the plain model",
        )


@contextlib.contextmanager
def _source(
    bundle: Bundle, against: str | None, revision: str | None, adapter: str | None, text: Pieces, on_step: OnStep
) -> Iterator[dict[str, Replayed]]:
    """The source over the text, in float32, while its file is open; nothing where none was given."""
    if against is None:
        yield {}
        return
    from edgellm.converters.architectures import describe
    from edgellm.converters.checkpoints import open_checkpoint
    from edgellm.converters.replay import Lane, replay

    with open_checkpoint(against, revision=revision, adapter=adapter) as checkpoint:
        spec, tensors = describe(checkpoint, bundle.spec.max_context)
        ours = bundle.spec
        for what, theirs, own in (
            ("architecture", spec.architecture, ours.architecture),
            ("vocabulary", spec.vocab_size, ours.vocab_size),
            ("layers", len(spec.layers), len(ours.layers)),
            ("hidden size", spec.hidden_size, ours.hidden_size),
            ("MLP size", spec.intermediate_size, ours.intermediate_size),
            ("attention heads", _heads(spec), _heads(ours)),
        ):
            if theirs != own:
                reason = f"another model than the bundle's: {what} {theirs}, not {own}"
                raise SourceError(reason, where=against, fix="give --against what the bundle was made of")
        layers = len(spec.layers)
        lane = Lane(plain(tensors), text.ids)
        (found,) = replay(spec, [lane], on_layer=lambda layer: on_step(f"reading the source, layer {layer + 1} of {layers}"))
        yield {SOURCE: found}


def _heads(spec: ModelSpec) -> str:
    """Of its kinds of attention: query heads, heads of keys and values, and their size."""
    kinds = map(spec.attention, range(len(spec.layers)))
    return ", ".join(dict.fromkeys(f"{kind.heads}/{kind.kv_heads} of {kind.head_dim}" for kind in kinds))


def _differences(judged: Judged, text: Pieces, tokenizer: Tokenizer) -> tuple[Difference, ...]:
    """The first positions where the likeliest token is another."""
    from edgellm.benchmarks.judge import RUN

    found: list[Difference] = []
    start = 0
    for piece in text.ids:
        for index in range(len(piece)):
            at = start + index
            source, ours = (int(judged.best[name][at]) for name in (SOURCE, RUN))
            if source != ours and len(found) < SHOWN:
                before = tokenizer.decode(piece[max(0, index + 1 - BEFORE) : index + 1].tolist())
                shares = [float(judged.confidence[name][at]) for name in (SOURCE, RUN)]
                tokens = [_token(tokenizer, token) for token in (source, ours)]
                found.append(Difference(at, before, tokens[0], shares[0], tokens[1], shares[1]))
        start += len(piece)
    return tuple(found)


def _token(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; what has none, or half a character, as the vocabulary spells it."""
    text = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
    return text if text and "\ufffd" not in text else tokenizer.spelling(token) or f"token {token}"


def plain(tensors: Tensors) -> decoder.Weights:
    """Weights in float32."""
    from edgellm.converters.weights import Weight

    return lambda name: Weight(name, tensors(name))


def version(graph: str) -> str:
    """Package and version of a graph's runtime."""
    from edgellm.runtimes import adapters

    adapter = adapters.find(graph)
    return graph if adapter is None else f"{adapter.PACKAGE} {adapters.version(adapter) or ''}".strip()
