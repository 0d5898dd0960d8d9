"""Targets: what a back end that writes bundles provides.

A target is a package of this folder with a module `export`, named as its runtime is (`onnx`), and found by that name. The
module has two functions and a few constants. `plan(spec, tensors, recipe, calibration) -> Plan` reads no weight; it raises
UsageError where the recipe asks for a grid that the kernels do not take. `grid(bits, block) -> Scheme` names the one they take
for so many bits. `BLOCKS` are the block sizes that they have, 0 for whole rows; `BLOCK_SIZE`, `KV` and `EXTRA_BITS` are the
block, the cache and the bits of mixed precision that suit them where nobody asks for others. `NO_ACTIVATIONS` says which
activations the kernels do not take, in bits: the reason, and what to do instead.

Beside `export` there is `fidelity`, by which what was written is measured: how its runtime rounds activations, and what lies in
the file.

Several plans are written together, so that the source is read once for all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from edgellm.bundle import Graph, TextPolicy, graph_name
from edgellm.converters.calibration import NOTHING, Calibration
from edgellm.converters.data import DataLayout, OnBytes, Region, write_data
from edgellm.converters.quantizers import Quantize
from edgellm.converters.replay import AsWritten, Numerics
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import UsageError
from edgellm.scheme import CacheGrid, Recipe, Scheme
from edgellm.spec import ModelSpec

BOTH, GRAPHS_OF_BOTH = "both", ("onnx", "tflite")


class Plan(Protocol):
    """A graph that is complete but for its data.

    Attributes:
        graph: what the manifest will say of it.
        layout: places of its data: what it takes on disk, and what there is to read and quantize.
        data_file: name of the file that takes the data.
        base: byte of that file where the data begins.
    """

    graph: Graph
    layout: DataLayout

    @property
    def data_file(self) -> str: ...

    @property
    def base(self) -> int: ...

    def write_graph(self, folder: Path) -> None:
        """Write the graph itself into `folder`, where its data lies by now."""
        ...

    def write_companions(self, folder: Path, text: TextPolicy, generation: Mapping[str, float]) -> None:
        """Write what other runtimes want beside the graph."""
        ...


class Target(Protocol):
    """The module of a target."""

    @property
    def BLOCKS(self) -> tuple[int, ...]:  # noqa: N802, a module's constant
        """Weights that can share a scale, 0 for whole rows."""
        ...

    @property
    def BLOCK_SIZE(self) -> int:  # noqa: N802, a module's constant
        """Weights that share a scale by default, 0 for whole rows."""
        ...

    @property
    def EXTRA_BITS(self) -> float:  # noqa: N802
        """Bits per linear weight that int4 spends where they do most, beyond what it gives all: a trade of size and speed."""
        ...

    @property
    def KV(self) -> str:  # noqa: N802
        """What keys and values are kept in by default, beside quantized weights."""
        ...

    @property
    def NO_ACTIVATIONS(self) -> Mapping[int, tuple[str, str]]:  # noqa: N802
        """Why there are no activations of so many bits beside quantized weights, and what to do."""
        ...

    def plan(
        self, spec: ModelSpec, tensors: Callable[[str], LazyTensor], recipe: Recipe, calibration: Calibration = NOTHING
    ) -> Plan:
        """Build the graph and lay out its data."""
        ...

    def grid(self, bits: int, block: int) -> Scheme:
        """The scheme of weights with `bits` in blocks of `block`, 0 for whole rows."""
        ...


class Fidelity(Protocol):
    """The module by which a target's bundles are measured."""

    @property
    def RUNS(self) -> bool:  # noqa: N802
        """Whether the runtime has to be here for `as_written`."""
        ...

    def numerics(self, recipe: Recipe, calibration: Calibration) -> Numerics:
        """What the runtime does to activations."""
        ...

    def as_written(self, folder: Path, graph: Graph, tensors: Callable[[str], LazyTensor]) -> AsWritten:
        """What lies in `folder`, in a form that rounds no activations; `tensors` of the source have the shapes."""
        ...

    def cache_constants(self, spec: ModelSpec, grids: Sequence[CacheGrid]) -> Iterator[Array]:
        """What a graph computes with, float32, if it keeps keys and values on these grids, by layer."""
        ...


def write(
    plans: Sequence[Plan], folder: Path, quantize: Quantize, *, slice_bytes: int, workers: int, on_bytes: OnBytes
) -> None:
    """Stream the data of all plans into `folder`, each weight read once, and write the graphs.

    Args:
        quantize: the method; called on slices of rows.
        slice_bytes: float32 bytes of one slice; a worker holds a few times that.
        workers: threads.
        on_bytes: called with a tensor's name and the float32 bytes just read, and written to every graph.

    Raises:
        SourceError: a weight holds NaN or infinity.
        OSError: the disk is full or a file cannot be written.
    """
    regions = [Region(plan.layout, folder / plan.data_file, plan.base) for plan in plans]
    write_data(regions, quantize, slice_bytes=slice_bytes, workers=workers, on_bytes=on_bytes)
    for plan in plans:
        plan.write_graph(folder)


def available() -> tuple[str, ...]:
    """Names of the targets as users write them: the packages of this folder that can export."""
    return tuple(sorted(file.parent.name.replace("_", "-") for file in Path(__file__).parent.glob("*/export.py")))


def choices() -> tuple[str, ...]:
    """What a user can ask for: one target, or `both` of ONNX and TFLite."""
    return (*available(), BOTH)


def find(name: str) -> Target:
    """The target's module; UsageError for a name that is none."""
    if str(name).replace("_", "-") not in available():
        raise UsageError(f"unknown target '{name}'", where="--target", fix=f"choose one of {', '.join(choices())}")
    return cast("Target", importlib.import_module(f"edgellm.converters.{graph_name(name)}.export"))


def fidelity(graph: str) -> Fidelity:
    """The module by which a graph of this name is measured."""
    return cast("Fidelity", importlib.import_module(f"edgellm.converters.{graph}.fidelity"))


def chosen(choice: str) -> dict[str, Target]:
    """The targets that a choice means, by the name of their graph; UsageError for what is none."""
    return {graph_name(str(name)): find(name) for name in (GRAPHS_OF_BOTH if choice == BOTH else (choice,))}
