"""`.litertlm`: the one file that Google's LiteRT-LM runs, on Android, iOS and desktop, made of a bundle that is there.

    from edgellm.litertlm import export_litertlm

    export_litertlm("bundle", "model.litertlm")

The weights are the bundle's own, byte for byte; nothing is quantized again, and no source is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from edgellm.bundle import Bundle
from edgellm.chat_template import ChatTemplate
from edgellm.conversion import Progress
from edgellm.errors import BundleError, EdgeError, UsageError
from edgellm.partial import check_disk, free_target, give_name, make_partial, remove_parents, remove_partial, write_error
from edgellm.runtimes import litertlm_file, tflite_file
from edgellm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgellm.converters.litertlm import TextRules

DEFAULT_CONTEXT = 2048  # the cache has its full size from the start: 4096 tokens of a 1B model would take hundreds of megabytes
RUNTIME, OPTION, SUFFIX = "tflite", "FILE", ".litertlm"
PROBE = "Hi"
ASK, ANSWER, ASK_AGAIN = (
    {"role": role, "content": text} for role, text in (("user", PROBE), ("assistant", "an answer"), ("user", "a question"))
)


def export_litertlm(
    bundle: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    max_context: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Make a .litertlm of a bundle.

    Args:
        bundle: its folder; it must have a graph for LiteRT (`--target tflite`).
        file: the file to make, named *.litertlm; it must not exist yet.
        max_context: tokens that prompt and answer may have together, which is fixed in the file; the default is the
            bundle's own, at most 2048.
        progress: called after each megabyte of weights.

    Returns:
        The file's full path.

    Raises:
        BundleError: the bundle is damaged or has no such graph, or the file exists or cannot be written.
        ResourceError: too little disk; while it is packed, the weights are there twice.
        UsageError: `max_context` makes no sense for this model, or `file` has another suffix.
    """
    from edgellm.converters import litertlm as packing
    from edgellm.converters.tflite import litertlm as graph

    opened = Bundle.open(bundle)
    if RUNTIME not in opened.graphs:
        made_for = ", ".join(opened.graphs)
        raise BundleError(
            f"the bundle is for {made_for}, and LiteRT-LM needs a TFLite graph",
            where=opened.path,
            fix="convert the model with --target tflite",
        )
    if opened.recipe_of(opened.graphs[RUNTIME]).activations == 16:
        raise BundleError(
            "its graph has int16 activations, which are not packed for LiteRT-LM",
            where=opened.path,
            fix="convert the model without --activations int16",
        )
    context = _context(opened, max_context)
    if Path(file).suffix != SUFFIX:
        raise UsageError(f"LiteRT-LM takes files named *{SUFFIX} only", where=file, fix=f"name it {Path(file).stem}{SUFFIX}")
    target = free_target(Path(file), OPTION)
    opened.ensure_verified()
    source = opened.file(opened.graphs[RUNTIME].file)
    tflite_file.check(source)
    rules = _rules(opened, context)
    plan = graph.plan(opened.spec, opened.recipe_of(opened.graphs[RUNTIME]), source, context)
    tokenizer = opened.file(opened.text.tokenizer)
    check_disk(target, 2 * plan.size + tokenizer.stat().st_size, "packing", OPTION)
    made = [parent for parent in target.parents if not parent.exists()]
    partial = make_partial(target, OPTION)
    try:
        done = 0

        def on_bytes(name: str, count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(Progress(done, plan.copied, name))

        model, packed = partial / "model.tflite", partial / "packed"
        plan.write(source, model, on_bytes)
        packing.pack(partial, packed, model=model, tokenizer=tokenizer, rules=rules)
        litertlm_file.check(packed)
        give_name(packed, target, OPTION)
    except OSError as error:
        raise write_error(error, target, OPTION) from error
    finally:
        remove_partial(partial)
        remove_parents(made)
    return target


def check_litertlm(file: str | os.PathLike[str]) -> None:
    """Look through the structure of a .litertlm that edgellm made: its list of sections, the model's tables, the tokenizer.

    Raises:
        BundleError: it is none, or a damaged one.
    """
    litertlm_file.check(Path(file))


def _context(bundle: Bundle, asked: int | None) -> int:
    longest = bundle.spec.max_context
    if not isinstance(asked, (int, NoneType)):
        raise UsageError(f"{asked!r} is not a whole number", where="--max-context", fix="pass an int")
    if asked is not None and not 0 < asked <= longest:
        raise UsageError(
            f"{asked} is not between 1 and the bundle's {longest}",
            where="--max-context",
            fix="choose another, or convert the model with a longer one",
        )
    return min(longest, DEFAULT_CONTEXT) if asked is None else asked


def _rules(bundle: Bundle, context: int) -> TextRules:
    """What makes LiteRT-LM feed the model the ids that our own runtime does."""
    from edgellm.converters import litertlm as packing

    text, tokenizer = bundle.text, Tokenizer.open(bundle)
    added = tokenizer.encode(PROBE, special=True)[: -len(tokenizer.encode(PROBE, special=False))]
    start = text.bos_id if added == [text.bos_id] else None
    if text.chat_template is None:
        return packing.TextRules(text.eos_ids, start, None, context)
    try:
        source = bundle.file(text.chat_template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"unreadable chat template: {error}", where=bundle.path, fix="convert the model again") from error
    template = ChatTemplate(source, text.special_tokens)
    bos = text.special_tokens.get("bos_token")
    if start is None or bos is None or not _rendered(template, [ASK]).startswith(bos):
        start = bos = None  # the template's word is the last one on how a conversation begins
    ends = [spelled for token in text.eos_ids if (spelled := tokenizer.spelling(token))]
    adapted = packing.chat_template(source, text.special_tokens, start=bos, end=_answers_end(template, ends))
    return packing.TextRules(text.eos_ids, start, adapted, context)


def _answers_end(template: ChatTemplate, ends: list[str]) -> str | None:
    """The stop token that a template writes behind an answer."""
    between = _rendered(template, [ASK, ANSWER, ASK_AGAIN]).partition(ANSWER["content"])[2].partition(ASK_AGAIN["content"])[0]
    found = [(between.find(end), end) for end in ends if end in between]
    return min(found)[1] if found else None


def _rendered(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    try:
        return template.render(messages)
    except EdgeError:  # a template that wants other messages
        return ""
