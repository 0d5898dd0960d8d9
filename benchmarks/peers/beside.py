"""Peers in the same rounds as edgellm's own bundles, all of them held against one source over one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from edgellm.benchmarks.cases import plan
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.lanes import folder_of, lanes
from edgellm.benchmarks.result import Settings
from edgellm.benchmarks.run import Entry
from edgellm.bundle import Bundle
from edgellm.errors import UsageError
from edgellm.runtimes.threads import default_threads


def entries(
    names: Sequence[str],
    source: Path,
    bundles: Sequence[Bundle],
    own: Sequence[Entry],
    settings: Settings,
    progress: Callable[[str], None],
) -> list[Entry]:
    """Our own lanes and the peers', to be measured and compared with the source.

    Args:
        names: such as "llama.cpp" or "llama.cpp:q4_k_m".
        source: the GGUF file or folder that the bundles were made of.
        own: the lanes of `bundles`.

    Raises:
        UsageError: no such peer, no model there, or one that the bundles were not made of.
        RuntimeUnavailable: a peer is not installed; the message says how to get it.
    """
    progress("the source at float32")
    ids = tuple(quality.text_ids(source)[: min([quality.POSITIONS, *(bundle.spec.max_context for bundle in bundles)])])
    for bundle in bundles:
        if _text_ids(bundle)[: len(ids)] != ids:
            raise UsageError("not what the bundle was made of", where=source, fix=f"give the source of {bundle.path}")
    progress("the peers' files")
    room = max(bundle.spec.max_context for bundle in bundles)
    cases, _ = plan(settings, room, chat=False)
    threads = tuple(dict.fromkeys(each or default_threads() for each in settings.threads))
    theirs = [Entry(lane, path, room, cases, ids) for lane, path in lanes(names, source, threads)]
    reference = quality.reference(source, list(ids), folder_of(source))
    return [replace(entry, ids=ids, reference=reference) for entry in (*own, *theirs)]


def _text_ids(bundle: Bundle) -> tuple[int, ...]:
    tokenizer = Tokenizer.from_file(str(bundle.file(bundle.text.tokenizer)))
    tokenizer.no_truncation()
    return tuple(tokenizer.encode(quality.TEXT.read_text(encoding="utf-8")).ids)
