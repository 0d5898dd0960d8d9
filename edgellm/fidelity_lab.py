"""The figures of a bundle: the source, what it should have become, and what lies in the file, over the same texts.

    source ──────────────── numpy, float32
    rounded weights ─────── numpy, float32 activations ── export error ──── what lies in the file
         │                            └── activations as the runtime rounds them: expected ── seen: the runtime
         └── numpy, activations rounded too ── quantization error ── source ── run ── the runtime

Rounded activations make a chaotic difference: a value that falls to the other side of one rounding moves every later one, so
two exact implementations of the same rules are as far apart as each is from float32. That is why export is compared without
them, and the runtime itself by how much they cost, not value by value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgellm import evaluation
from edgellm.activations import differ, said
from edgellm.bundle import Bundle, FileEntry, Graph
from edgellm.card import GraphCard, LinearError, Rounding
from edgellm.card_page import NOT_RUN
from edgellm.errors import ResourceError, RuntimeUnavailable
from edgellm.scheme import IMPORTED, Recipe

if TYPE_CHECKING:
    from edgellm.benchmarks.texts import Pieces
    from edgellm.converters.calibration import Calibration
    from edgellm.converters.quantizers import Quantize
    from edgellm.converters.replay import Lane, Replayed, Tensors
    from edgellm.converters.targets import Target
    from edgellm.converters.weights import LazyTensor, Weight
    from edgellm.runtimes.session import Session
    from edgellm.spec import ModelSpec

STARTS = {"best": 96, "fast": 48}  # by preset: tokens of each piece that comparisons take which need no more
WORST = 8
FIXED_BYTES = 640 << 20  # interpreter, libraries, slices of weights, and a block of a runtime's logits
PLAIN_BLOCK = 32
SOURCE, QUANTIZED, FLOAT, WRITTEN, ROUNDED = "source", "quantized", "float activations", "written", "plain rounding"
OnStep = Callable[[str, float], None]


@dataclass(frozen=True)
class Origin:
    """The source: its spec, which may not be the bundle's, and its tensors by canonical name."""

    spec: ModelSpec
    tensors: Tensors


@dataclass(frozen=True)
class Made:
    """One graph as conversion made it.

    Attributes:
        target: its module.
        recipe: which tensor was quantized how.
        tensors: what was quantized, by canonical name; those that were settled on a grid before bring their codes.
        quantize: the method that made the codes of the others.
    """

    target: Target
    recipe: Recipe
    tensors: Tensors
    quantize: Quantize

    @property
    def kind(self) -> Literal["fp32", "int8", "int4"]:
        """What the linear weights were rounded to: "fp32", "int8", or "int4", which has a few in 8 bits.

        Codes that the source brought lose nothing, whatever their bits: with nothing below 8 bits beside them, what is lost is
        what 8 bits lose, and that is "int8". So is a cache in 8 bits beside float32.
        """
        rules = [rule for rule in self.recipe.rules if rule.scheme is not None]
        few = any(rule.scheme.bits < 8 for rule in rules if rule.scheme is not None and rule.method != IMPORTED)
        return "int4" if few else "int8" if rules or self.recipe.kv == 8 else "fp32"

    @property
    def imported(self) -> bool:
        """Whether every code is the source's own."""
        return self.recipe.method == IMPORTED

    def plainly_rounded(self) -> Recipe:
        """The recipe of plain rounding, in blocks of 32 where the target has blocks, and otherwise as here."""
        from edgellm.converters.recipes import recipe

        block = min(self.target.BLOCK_SIZE, PLAIN_BLOCK)
        return recipe("int4", "rtn", block, self.target.grid, "int8" if self.recipe.kv == 8 else "fp32")

    @property
    def calibrated(self) -> bool:
        """Whether a text had a say in how weights were rounded to few bits."""
        from edgellm.converters import quantizers

        return self.kind == "int4" and quantizers.is_calibrated(self.recipe.method)


class Lab:
    """The measurement of one bundle.

    Args:
        bundle: it is still private: files may come and go in its folder.
        origin: the source.
        made: by graph.
        preset: how much is read where less will do.
        max_ram: bytes of anonymous memory to stay under, or None.
        on_step: called with what is being measured, and how much of that is done.
    """

    def __init__(
        self,
        bundle: Bundle,
        origin: Origin,
        made: Mapping[str, Made],
        calibration: Calibration,
        pieces: Pieces,
        *,
        preset: str,
        max_ram: int | None,
        on_step: OnStep,
    ) -> None:
        self._bundle, self._made, self._calibration = bundle, made, calibration
        self._pieces, self._max_ram, self._on_step = pieces, max_ram, on_step
        self._starts, self._where = pieces.starts(STARTS[preset])
        shared = cache(origin.tensors)  # one object a tensor: what lanes have in common is read once
        self._origin = Origin(origin.spec, shared)
        self._quantized = {
            name: shared if each.tensors is origin.tensors else cache(each.tensors) for name, each in made.items()
        }

    def measure(self) -> dict[str, GraphCard]:
        """The figures of every graph, one graph loaded at a time."""
        from edgellm.converters import targets
        from edgellm.converters.replay import Lane
        from edgellm.converters.weights import on_grids

        plain = {SOURCE: Lane(evaluation.plain(self._origin.tensors), self._pieces.ids)}
        lanes = {}
        for name, made in self._made.items():
            if made.kind != "fp32":
                numerics = targets.fidelity(name).numerics(made.recipe, self._calibration)
                weights = on_grids(self._quantized[name], made.recipe, self._calibration.importance)
                lanes[f"{name} {QUANTIZED}"] = Lane(weights, self._pieces.ids, made.quantize, numerics, watched="weights")
                floats = on_grids(self._quantized[name], replace(made.recipe, activations=32), self._calibration.importance)
                lanes[f"{name} {FLOAT}"] = Lane(floats, self._starts, made.quantize)
                if made.calibrated:
                    weights = _rounded_anew(self._origin.tensors, made.plainly_rounded())
                    # over all of the text: of a few hundred positions a single one may be half of the mean
                    plain[f"{name} {ROUNDED}"] = Lane(weights, self._pieces.ids, numerics=numerics)
        found = self._replay(plain, lanes, "source and rounded weights by numpy")
        with np.errstate(over="ignore", invalid="ignore"):  # the gates say what is not finite
            return {name: self._graph(name, found) for name in self._made}

    def _graph(self, name: str, found: Mapping[str, Replayed]) -> GraphCard:
        """One graph's figures, from what numpy found and what its runtime does."""
        from edgellm.benchmarks.judge import RUN, judge

        self._on_step(f"measuring {name}", 0)
        vocab = self._bundle.spec.vocab_size
        quantized, plain = found.get(f"{name} {QUANTIZED}"), found.get(f"{name} {FLOAT}")
        models = {SOURCE: found[SOURCE]} | ({} if quantized is None else {QUANTIZED: quantized})
        made = self._made[name].recipe
        notes = [f"Activations: {said(made, self._bundle.spec)}."] if differ(made) else []
        weights = activations = expected = rounding = None
        with self._session(name, self._bundle, notes) as session:
            pairs = [(SOURCE, other) for other in (QUANTIZED, RUN)]
            pairs = [(p, q) for p, q in pairs if q in models or (q == RUN and session is not None)]
            judged = judge(models, session, self._pieces.ids, pairs, vocab)
            if session is not None and quantized is not None and plain is not None:
                both = {FLOAT: plain, QUANTIZED: quantized.at(self._where)}
                seen = judge(both, session, self._starts, [(FLOAT, QUANTIZED), (FLOAT, RUN)], vocab)
                activations, expected = seen.apart[FLOAT, RUN].gap(), seen.apart[FLOAT, QUANTIZED].gap()
        if quantized is not None and plain is not None:
            there = {SOURCE: found[SOURCE].at(self._where), FLOAT: plain}
            weights = judge(there, None, self._starts, [(SOURCE, FLOAT)], vocab).apart[SOURCE, FLOAT].gap()
        if quantized is not None and (rounded := found.get(f"{name} {ROUNDED}")) is not None:
            there, pair = {SOURCE: found[SOURCE], ROUNDED: rounded}, (SOURCE, ROUNDED)
            plainly = judge(there, None, self._pieces.ids, [pair], vocab).apart[pair].gap()
            rounding = Rounding(plainly, judged.apart[SOURCE, QUANTIZED].gap().kl / plainly.kl if plainly.kl else 0.0)
        gaps = {q: apart.gap() for (_, q), apart in judged.apart.items()}
        card = GraphCard(
            verdict="not measured",
            reason="",
            quantization=gaps.get(QUANTIZED),
            weights=weights,
            rounding=rounding,
            activations=activations,
            activations_expected=expected,
            run=gaps.get(RUN),
            perplexity=judged.perplexity.get(RUN, judged.perplexity.get(QUANTIZED)),
            source_perplexity=judged.perplexity[SOURCE],
            runtime=None if RUN not in judged.perplexity else evaluation.version(name),
            worst=() if quantized is None else _worst(quantized.errors),
            notes=tuple(notes),
        )
        return self._with_export(name, card, plain)

    def _with_export(self, name: str, card: GraphCard, plain: Replayed | None) -> GraphCard:
        """The card with its export error: what lies in the file against what should."""
        from edgellm.benchmarks.judge import RUN, judge
        from edgellm.converters import targets
        from edgellm.converters.replay import Lane

        if plain is None:  # nothing was rounded: the run itself tells
            return replace(card, export=card.run, export_by="the runtime itself")
        if card.runtime is None and targets.fidelity(name).RUNS:
            return card
        vocab, folder = self._bundle.spec.vocab_size, self._bundle.path
        written = targets.fidelity(name).as_written(folder, self._bundle.graphs[name], self._quantized[name])
        pair, notes = (FLOAT, WRITTEN), list(card.notes)
        if written.tensors is not None:
            lane = Lane(evaluation.plain(written.tensors), self._starts)
            models = {FLOAT: plain, **self._replay({}, {WRITTEN: lane}, f"what was written for {name}")}
            return replace(
                card, export=judge(models, None, self._starts, [pair], vocab).apart[pair].gap(), export_by=written.by
            )
        if written.graph is None:
            return card
        with _beside(self._bundle, name, written.graph) as bundle, self._session(name, bundle, notes) as session:
            if session is None:
                return replace(card, notes=tuple(notes))
            gap = judge({FLOAT: plain}, session, self._starts, [(FLOAT, RUN)], vocab).apart[FLOAT, RUN].gap()
        return replace(card, export=gap, export_by=written.by)

    def _replay(self, plain: Mapping[str, Lane], lanes: Mapping[str, Lane], what: str) -> dict[str, Replayed]:
        """Lanes over the source as it is, and over what the bundle made of it: side by side where the specs agree."""
        from edgellm.converters.replay import replay

        layers = len(self._bundle.spec.layers)
        if self._bundle.spec == self._origin.spec:
            plain, lanes = {}, {**plain, **lanes}
        found: dict[str, Replayed] = {}
        for spec, group in ((self._origin.spec, plain), (self._bundle.spec, lanes)):
            if group:
                seen = replay(
                    spec, list(group.values()), on_layer=lambda layer: self._on_step(f"measuring {what}", layer / layers)
                )
                found |= zip(group, seen, strict=True)
        return found

    @contextlib.contextmanager
    def _session(self, name: str, bundle: Bundle, notes: list[str]) -> Iterator[Session | None]:
        """A session of a graph in its runtime; None, with a note, where the runtime or the memory for it is not here."""
        from edgellm.runtimes import open_runtime

        if self._max_ram is not None and _runtime_bytes(bundle, bundle.graphs[name]) > self._max_ram:
            notes.append(f"{NOT_RUN}{name} takes more memory than was allowed")
            yield None
            return
        try:
            runtime = open_runtime(bundle, name=name, max_context=max(map(len, self._pieces.ids)))
        except (RuntimeUnavailable, ResourceError) as error:
            notes.append(f"{NOT_RUN}{error.what}")
            yield None
            return
        try:
            session = runtime.session()
            yield session
            session.close()
        finally:
            runtime.close()


@contextlib.contextmanager
def _beside(bundle: Bundle, name: str, graph: Graph) -> Iterator[Bundle]:
    """The bundle with another graph, whose file goes when it was used."""
    path = bundle.path / graph.file
    try:
        files = {**bundle.files, graph.file: FileEntry(path.stat().st_size, "")}
        yield replace(bundle, graphs={name: graph}, files=files)
    finally:
        path.unlink(missing_ok=True)


def _runtime_bytes(bundle: Bundle, graph: Graph) -> int:
    """What a runtime takes beside this process's own: weights, packed once more, and logits."""
    return FIXED_BYTES + 2 * sum(bundle.files[name].size for name in bundle.files_of(graph))


def _rounded_anew(tensors: Tensors, recipe: Recipe) -> Callable[[str], Weight]:
    """A source's weights as a recipe rounds them, whatever codes the source brings: those would be no rounding."""
    from edgellm.converters.weights import Unsettled, on_grids

    def tensor(name: str) -> LazyTensor:
        found, scheme = tensors(name), recipe.scheme(name)
        return found if scheme is None or found.on_grid(scheme, 0, 0) is None else Unsettled(found)

    return on_grids(tensor, recipe)


def _worst(errors: Mapping[str, float]) -> tuple[LinearError, ...]:
    order = sorted(errors, key=lambda name: -errors[name])[:WORST]
    return tuple(LinearError(name, errors[name]) for name in order)
