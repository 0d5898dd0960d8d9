"""Conversion as a story: open the source, plan the graph, stream the weights, add the text files, rename into place.

Everything is written into a hidden folder beside the target, which gets its name only when it is complete: whatever
stops the process, there is a whole bundle under the target's name or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from edgellm._version import __version__
from edgellm.bundle import Bundle, Graph, TextPolicy, write_manifest
from edgellm.converters.checkpoints.base import Text
from edgellm.errors import BundleError, ResourceError, UsageError
from edgellm.partial import check_disk, free_target, make_partial, remove_parents, remove_partial, write_error
from edgellm.scheme import Recipe

if TYPE_CHECKING:
    from edgellm.chat_template import ChatTemplate

TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
DEFAULT_SLICE = 4 << 20
PARTS = 1000
FIXED_BYTES = 256 << 20  # interpreter, libraries, tokenizer of a large vocabulary, the graph itself
SLICE_COPIES = 8  # float32 copies of a slice that dequantizing, rounding and packing hold at once


@dataclass(frozen=True)
class Progress:
    """How far a conversion is.

    Attributes:
        done, total: of what is going on: float32 bytes of weights while they are written, thousandths otherwise.
        name: the tensor just written, or what else is going on.
    """

    done: int
    total: int
    name: str


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str = "onnx",
    quant: str | None = None,
    method: str | None = None,
    block_size: int | None = None,
    recipe: str | os.PathLike[str] | None = None,
    bits_per_weight: float | None = None,
    kv: str | None = None,
    activations: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    max_ram: int | None = None,
    max_context: int | None = None,
    revision: str | None = None,
    evaluate: bool = True,
    preset: str = "best",
    allow_degraded: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Bundle:
    """Convert a model into a bundle.

    Args:
        source: a .gguf file, a Hugging Face folder, or a hub id.
        output: the bundle's folder; it must not exist yet.
        target: runtime to make a graph for: "onnx", "tflite", "tflite-compat", or "both" of the first two.
        quant: "int4", "int8" or "fp32"; None takes what the recipe file says, else "int4".
        method: quantization method: a file of `converters/quantizers`; None takes "gptq" for int4, "rtn" for int8, and
            carries codes over as they are where the source has some on a grid that the target takes.
        block_size: input channels that share a scale: 16, 32, 64 or 128; on tflite 32, 64, 128, or 0 for a whole row, which is
            all that tflite-compat has. None takes the target's own: 32, and 0 on tflite-compat. One for both has to suit both.
        recipe: a TOML file that gives single tensors other bits or blocks; see `edgellm.converters.recipe_file`.
        bits_per_weight: of the linears, scales included: mixed precision within so many, under int4. None spends a little more
            than the recipe's where nobody named a method, a block or a recipe.
        kv: "fp32" or "int8": what keys and values are kept in; scales of int8 are found on a text that comes with edgellm. None
            takes int8 on tflite where the weights are quantized, else fp32.
        activations: "dynamic" (8 bits, rounded as they come), "int16" (with scales from a text; tflite, for hardware that wants
            it) or "none" (float32; onnx), of what comes into products with quantized weights. None takes dynamic. On onnx,
            dynamic leaves those products in float32 where 8 bits cost too much, as a text shows.
        calibration: a UTF-8 text of the domain that the model will work in, for methods that weigh errors by one and for scales
            of an 8-bit cache; or a .jsonl file with a conversation a line, {"messages": [{"role": ..., "content": ...}, ...]},
            which the model's own chat template writes out. Its first 12,288 tokens count. None takes the text that comes with
            edgellm, "none" does without: rtn, and a cache in fp32.
        adapter: a PEFT LoRA to merge on the way: a folder, or a hub id.
        max_ram: bytes of anonymous memory to stay under (mapped source pages do not count).
        max_context: longest context the bundle serves; the default is the model's own, at most 8192.
        revision: hub revision (branch, tag or commit).
        evaluate: measure how far the bundle is from its source, in the runtimes that are installed here, and refuse it where
            that is past the gates of docs/fidelity.md. False makes it in less time; its card then says so.
        preset: "best", or "fast": "rtn" where no method is named, and a short look at its fidelity.
        allow_degraded: keep a bundle that lost too much; its card says so.
        progress: called from this thread after each slice of weights.

    Raises:
        SourceError: the source cannot be read or is not supported.
        BundleError: the target exists or cannot be written.
        ResourceError: too little disk, or `max_ram` is too small.
        FidelityError: the bundle lost too much, or its graph does not compute what was quantized.
        UsageError: an argument that makes no sense.
    """
    from edgellm import activations as activations_of
    from edgellm import fidelity, fidelity_lab
    from edgellm.converters import quantizers, targets
    from edgellm.converters.architectures import describe
    from edgellm.converters.checkpoints import open_checkpoint
    from edgellm.converters.choices import Choices
    from edgellm.converters.data import source_bytes
    from edgellm.converters.preparation import Limits, prepare, stored_bytes

    for name, number in (("max_ram", max_ram), ("max_context", max_context)):
        if not isinstance(number, (int, NoneType)):
            raise UsageError(f"{number!r} is not a whole number", where=name, fix="pass an int")
    wanted = fidelity.Wanted.of(
        evaluate=evaluate,
        preset=preset,
        allow_degraded=allow_degraded,
        method=method,
        calibration=calibration,
        max_ram=max_ram,
    )
    back_ends = targets.chosen(target)
    choices = Choices.read(
        quant=quant,
        method=method,
        block_size=block_size,
        kv=kv,
        bits_per_weight=bits_per_weight,
        recipe=recipe,
        calibration=calibration,
        preset=preset,
        activations=activations,
    )
    wanted_recipes = choices.recipes(back_ends)  # says what cannot be before a source is opened
    workers = min(os.cpu_count() or 1, 4)
    limits = Limits(_slice_bytes(max_ram, workers), max_ram, workers)
    folder = free_target(Path(output), "-o")

    def on_phase(phase: str, share: float) -> None:
        if progress is not None:
            progress(Progress(int(share * PARTS), PARTS, phase))

    with ExitStack() as opened:
        checkpoint = opened.enter_context(open_checkpoint(str(source), revision=revision, adapter=adapter))
        source_spec, tensors = describe(checkpoint, max_context)
        text = checkpoint.text()
        if choices.chat is not None:
            choices = choices.written(_template(text))
        rough = stored_bytes(source_spec, tensors, wanted_recipes)
        check_disk(folder, rough, "the bundle", "-o")  # said now, and not after minutes
        ready = prepare(choices, back_ends, source_spec, tensors, text.tokenizer, limits, on_phase)
        opened.callback(ready.release)
        ready = activations_of.settled(ready, back_ends, choices, text.tokenizer, limits, on_phase)
        quantize = quantizers.find(ready.method)
        plans = {
            name: back_end.plan(ready.spec, ready.tensors, ready.recipes[name], ready.calibration)
            for name, back_end in back_ends.items()
        }
        bundles = next(iter(ready.recipes.values()))  # a graph on other grids says so itself
        layouts = [plan.layout for plan in plans.values()]
        check_disk(folder, sum(layout.size for layout in layouts), "the bundle", "-o")
        made = [parent for parent in folder.parents if not parent.exists()]
        partial = make_partial(folder, "-o")
        try:
            done, total = 0, source_bytes(layouts)

            def on_bytes(name: str, count: int) -> None:
                nonlocal done
                done += count
                if progress is not None:
                    progress(Progress(done, total, name))

            policy = _write_text(partial, text)
            every = list(plans.values())
            targets.write(every, partial, quantize, slice_bytes=limits.slice_bytes, workers=workers, on_bytes=on_bytes)
            for plan in every:
                plan.write_companions(partial, policy, text.generation)
            for name, content in checkpoint.licenses().items():
                (partial / name).write_bytes(content)
            write_manifest(
                partial,
                spec=ready.spec,
                recipe=bundles,
                provenance=checkpoint.provenance,
                text=policy,
                generation=text.generation,
                graphs={name: _with_recipe(plan.graph, ready.recipes[name], bundles) for name, plan in plans.items()},
                producer=f"edgellm {__version__}",
            )
            graphs = {name: fidelity_lab.Made(back_ends[name], ready.recipes[name], ready.tensors, quantize) for name in plans}
            origin = fidelity_lab.Origin(source_spec, tensors)
            fidelity.measure(Bundle.open(partial), origin, graphs, ready.calibration, wanted, on_phase)
            _check_readable(partial, folder)
            _rename(partial, folder)
            ready.clear()
        except OSError as error:
            raise write_error(error, folder, "-o") from error
        finally:
            remove_partial(partial)
            remove_parents(made)
    return Bundle.open(folder)


def _with_recipe(graph: Graph, own: Recipe, bundles: Recipe) -> Graph:
    return graph if own == bundles else replace(graph, recipe=own)


def _slice_bytes(max_ram: int | None, workers: int) -> int:
    if max_ram is None:
        return DEFAULT_SLICE
    room = (max_ram - FIXED_BYTES) // (workers * SLICE_COPIES)
    if room < 1 << 20:
        least = FIXED_BYTES + workers * SLICE_COPIES * (1 << 20)
        raise ResourceError("too little for a conversion", where="--max-ram", fix=f"give at least {-(-least >> 20)}M")
    return min(DEFAULT_SLICE, room)


def _write_text(folder: Path, text: Text) -> TextPolicy:
    (folder / TOKENIZER).write_bytes(text.tokenizer)
    config = dict(text.tokenizer_config)
    if text.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_bytes(text.chat_template.encode())
        config["chat_template"] = text.chat_template
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return TextPolicy(
        tokenizer=TOKENIZER,
        chat_template=None if text.chat_template is None else CHAT_TEMPLATE,
        bos_id=text.bos_id,
        eos_ids=text.eos_ids,
        pad_id=text.pad_id,
        special_tokens=_special_tokens(text.tokenizer_config),
    )


def _template(text: Text) -> ChatTemplate | None:
    """The source's own chat template."""
    from edgellm.chat_template import ChatTemplate

    return None if text.chat_template is None else ChatTemplate(text.chat_template, _special_tokens(text.tokenizer_config))


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Role to token text; tokenizer_config.json writes a token as a string or as an object with its content."""
    tokens = {}
    for role, token in config.items():
        content = token.get("content") if isinstance(token, Mapping) else token
        if role.endswith("_token") and isinstance(content, str):
            tokens[role] = content
    return tokens


def _check_readable(partial: Path, target: Path) -> None:
    """Nothing gets the name that could not be opened under it."""
    try:
        Bundle.open(partial)
    except BundleError as error:
        raise BundleError(f"what was made cannot be read: {error.what}", where=target, fix="report it") from error


def _rename(partial: Path, target: Path) -> None:
    for name in (entry for entry in partial.rglob("*") if entry.is_file()):
        with name.open("rb+") as file:
            os.fsync(file.fileno())
    try:
        partial.rename(target)
    except OSError as error:
        if target.exists():
            raise BundleError("the target appeared during the conversion", where=target, fix="choose another -o") from error
        raise
