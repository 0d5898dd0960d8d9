"""Conversion as a story: open the source, plan the graph, stream the weights, add the text files, rename into place.

Everything is written into a hidden folder beside the target, which gets its name only when it is complete: whatever
stops the process, there is a whole bundle under the target's name or none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

from edgellm._version import __version__
from edgellm.bundle import Bundle, Graph, TextPolicy, write_manifest
from edgellm.converters.calibration import NOTHING, calibrate
from edgellm.converters.checkpoints.base import Text
from edgellm.errors import BundleError, EdgeError, ResourceError, UsageError
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
    block_size: int = 32,
    kv: str = "fp32",
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
        target: runtime to make a graph for: "onnx", "tflite", or "both".
        quant: "int4", "int8" or "fp32".
        method: quantization method: a file of `converters/quantizers`; None takes "imatrix" for int4, "rtn" for int8.
        block_size: input channels that share a scale: 16, 32, 64 or 128; on tflite 32, 64, 128, or 0 for a whole row.
            One for both has to suit both.
        kv: "fp32" or "int8": what keys and values are kept in; scales of int8 are found on a text that comes with edgellm.
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
    from edgellm.converters import quantizers, targets
    from edgellm.converters.architectures import describe
    from edgellm.converters.checkpoints import open_checkpoint
    from edgellm.converters.data import source_bytes
    from edgellm.converters.recipes import recipe as make_recipe
    from edgellm.converters.weights import Weight

    for name, number in (("max_ram", max_ram), ("max_context", max_context)):
        if not isinstance(number, (int, NoneType)):
            raise UsageError(f"{number!r} is not a whole number", where=name, fix="pass an int")
    back_ends = targets.chosen(target)
    recipes = {name: make_recipe(quant, method, block_size, back_end.grid, kv) for name, back_end in back_ends.items()}
    recipe = next(iter(recipes.values()))  # the bundle's; a graph on other grids says so itself
    quantize = quantizers.find(method or (recipe.method if recipe.rules else "rtn"))
    workers = min(os.cpu_count() or 1, 4)
    slice_bytes = _slice_bytes(max_ram, workers)
    folder = _free_target(Path(output))
    with open_checkpoint(str(source), revision=revision, adapter=adapter) as checkpoint:
        spec, tensors = describe(checkpoint, max_context)
        text = checkpoint.text()
        calibration = NOTHING
        if any(each.kv == 8 or (each.rules and quantizers.is_calibrated(each.method)) for each in recipes.values()):
            calibration = calibrate(spec, lambda name: Weight(name, tensors(name)), text.tokenizer, slice_bytes)
            recipes = {name: replace(each, calibration=calibration.digest) for name, each in recipes.items()}
            recipe = next(iter(recipes.values()))
        plans = {name: back_end.plan(spec, tensors, recipes[name], calibration) for name, back_end in back_ends.items()}
        layouts = [plan.layout for plan in plans.values()]
        _check_disk(folder, sum(layout.size for layout in layouts))
        made = [parent for parent in folder.parents if not parent.exists()]
        partial = _make_partial(folder)
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
        except OSError as error:
            raise _write_error(error, folder) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):  # the target lies in them, if all went well
                for parent in made:
                    parent.rmdir()
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


def _free_target(target: Path) -> Path:
    target = Path.cwd() / target
    try:
        target.lstat()
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:  # below a file, too long, or no path at all
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"cannot write: {reason}", where=target, fix="choose another -o") from error
    raise BundleError("the target exists already", where=target, fix="remove it or choose another -o")


def _make_partial(target: Path) -> Path:
    """The hidden folder that becomes the bundle; what killed conversions to this target left behind is cleared away."""
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{_escape_glob(target.name)}.partial-*"):
            owner = re.fullmatch(r".*\.partial-(\d+)", left.name)
            if owner and not _alive(int(owner[1])):
                shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise _write_error(error, target) from error
    return partial


def _escape_glob(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere signal 0 is no harmless question
    if pid == os.getpid():
        return False  # an earlier conversion of this very process: it has ended
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's process, or a system that cannot tell
    return True


def _check_disk(target: Path, size: int) -> None:
    parent = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < size + (64 << 20):
        raise ResourceError(
            f"the bundle needs {(size >> 20) + 64} MB and {free >> 20} MB are free",
            where=parent,
            fix="make room or choose another -o",
        )


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


def _write_error(error: OSError, target: Path) -> EdgeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError("the disk is full", where=target, fix="make room or choose another -o; nothing was left behind")
    reason = error.strerror or str(error)
    return BundleError(f"cannot write: {reason}", where=target, fix="check the path and its permissions")
