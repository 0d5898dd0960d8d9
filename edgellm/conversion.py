"""Conversion as a story: open the source, plan the graph, stream the weights, add the text files, rename into place.

Everything is written into a hidden folder beside the target, which gets its name only when it is complete: whatever
stops the process, there is a whole bundle under the target's name or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

from edgellm._version import __version__
from edgellm.bundle import Bundle, Graph, TextPolicy, write_manifest
from edgellm.converters.checkpoints.base import Text
from edgellm.errors import BundleError, ResourceError, UsageError
from edgellm.partial import check_disk, free_target, make_partial, remove_parents, remove_partial, write_error
from edgellm.scheme import Recipe

TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
DEFAULT_SLICE = 4 << 20
FIXED_BYTES = 256 << 20  # interpreter, libraries, tokenizer of a large vocabulary, the graph itself
SLICE_COPIES = 8  # float32 copies of a slice that dequantizing, rounding and packing hold at once


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: float32 bytes of weights done, of all, and the tensor just written."""

    done_bytes: int
    total_bytes: int
    name: str


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str = "onnx",
    quant: str = "int4",
    method: str | None = None,
    block_size: int | None = None,
    kv: str | None = None,
    calibration: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    max_ram: int | None = None,
    max_context: int | None = None,
    revision: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Bundle:
    """Convert a model into a bundle.

    Args:
        source: a .gguf file, a Hugging Face folder, or a hub id.
        output: the bundle's folder; it must not exist yet.
        target: runtime to make a graph for: "onnx", "tflite", "tflite-compat", or "both" of the first two.
        quant: "int4", "int8" or "fp32".
        method: quantization method: a file of `converters/quantizers`; None takes "imatrix" for int4, "rtn" for int8.
        block_size: input channels that share a scale: 16, 32, 64 or 128; on tflite 32, 64, 128, or 0 for a whole row, which is
            all that tflite-compat has. None takes the target's own: 32, and 0 on tflite-compat. One for both has to suit both.
        kv: "fp32" or "int8": what keys and values are kept in; scales of int8 are found on a text that comes with edgellm. None
            takes int8 on tflite where the weights are quantized, else fp32.
        calibration: a UTF-8 text of the domain that the model will work in, for methods that weigh errors by one and for scales
            of an 8-bit cache; None takes the one that comes with edgellm, "none" does without: rtn, and a cache in fp32.
        adapter: a PEFT LoRA to merge on the way: a folder, or a hub id.
        max_ram: bytes of anonymous memory to stay under (mapped source pages do not count).
        max_context: longest context the bundle serves; the default is the model's own, at most 8192.
        revision: hub revision (branch, tag or commit).
        progress: called from this thread after each slice of weights.

    Raises:
        SourceError: the source cannot be read or is not supported.
        BundleError: the target exists or cannot be written.
        ResourceError: too little disk, or `max_ram` is too small.
        UsageError: an argument that makes no sense.
    """
    from edgellm.converters import calibration_text, quantizers, targets
    from edgellm.converters.architectures import describe
    from edgellm.converters.checkpoints import open_checkpoint
    from edgellm.converters.data import source_bytes
    from edgellm.converters.preparation import CalibrationText, prepare
    from edgellm.converters.recipes import recipe as make_recipe

    for name, number in (("max_ram", max_ram), ("max_context", max_context)):
        if not isinstance(number, (int, NoneType)):
            raise UsageError(f"{number!r} is not a whole number", where=name, fix="pass an int")
    text_of_own = calibration_text.chosen(calibration)
    if calibration == calibration_text.NO_TEXT:
        method, kv = calibration_text.without(method, kv)
    back_ends = targets.chosen(target)
    recipes: Mapping[str, Recipe] = {
        name: make_recipe(
            quant,
            method,
            back_end.BLOCK_SIZE if block_size is None else block_size,
            back_end.grid,
            kv or ("fp32" if quant == "fp32" else back_end.KV),
        )
        for name, back_end in back_ends.items()
    }
    recipe = next(iter(recipes.values()))  # the bundle's; a graph on other grids says so itself
    quantize = quantizers.find(method or (recipe.method if recipe.rules else "rtn"))
    workers = min(os.cpu_count() or 1, 4)
    slice_bytes = _slice_bytes(max_ram, workers)
    folder = free_target(Path(output), "-o")
    with open_checkpoint(str(source), revision=revision, adapter=adapter) as checkpoint:
        spec, tensors = describe(checkpoint, max_context)
        text = checkpoint.text()
        ready = prepare(
            spec,
            tensors,
            recipes,
            CalibrationText(text.tokenizer, text_of_own),
            slice_bytes=slice_bytes,
            max_ram=max_ram,
            workers=workers,
        )
        recipes = ready.recipes
        recipe = next(iter(recipes.values()))
        plans = {
            name: back_end.plan(spec, ready.tensors, recipes[name], ready.calibration) for name, back_end in back_ends.items()
        }
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
            targets.write(every, partial, quantize, slice_bytes=slice_bytes, workers=workers, on_bytes=on_bytes)
            for plan in every:
                plan.write_companions(partial, policy, text.generation)
            for name, content in checkpoint.licenses().items():
                (partial / name).write_bytes(content)
            write_manifest(
                partial,
                spec=spec,
                recipe=recipe,
                provenance=checkpoint.provenance,
                text=policy,
                generation=text.generation,
                graphs={name: _with_recipe(plan.graph, recipes[name], recipe) for name, plan in plans.items()},
                producer=f"edgellm {__version__}",
            )
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


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Role to token text; tokenizer_config.json writes a token as a string or as an object with its content."""
    tokens = {}
    for role, token in config.items():
        content = token.get("content") if isinstance(token, Mapping) else token
        if role.endswith("_token") and isinstance(content, str):
            tokens[role] = content
    return tokens


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
