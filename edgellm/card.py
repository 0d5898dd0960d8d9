"""The fidelity card: how far what a bundle says is from what its source says, as it was measured when it was made.

Two errors are kept apart. Quantization is what rounding costs: numpy with the rounded weights against numpy with the source's,
with activations rounded as the runtime rounds them. Export is what packing and the graph cost, and has to be nothing: what lies
in the file against the same rounded weights, neither with rounded activations. What a user meets is `run`: the runtime itself
against the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# passed; past its gate and kept because the user asked (--allow-degraded) or named the method; or there was nothing to go by
Verdict = Literal["passed", "degraded", "chosen", "ungated", "not measured"]
PAGE = "FIDELITY.md"


@dataclass(frozen=True)
class Gap:
    """How far one model's next-token distributions are from another's.

    Attributes:
        kl: mean KL divergence in nats.
        kl_error: its standard error over positions.
        kl_p99: the 99th percentile over positions.
        top1: share of positions where both find the same token likeliest.
        positions: how many there were.
    """

    kl: float
    kl_error: float
    kl_p99: float
    top1: float
    positions: int


@dataclass(frozen=True)
class Text:
    """What was read.

    Attributes:
        name: of the text: edgellm's own, or a user's file.
        sha256: of its token ids (int64, little endian), one piece behind the other.
        positions: tokens that logits were compared after.
        pieces: contexts that the text was cut into.
    """

    name: str
    sha256: str
    positions: int
    pieces: int


@dataclass(frozen=True)
class LinearError:
    """What rounding one weight costs: the energy of its output's error over that of its output."""

    name: str
    error: float


@dataclass(frozen=True)
class Rounding:
    """What plain rounding would have cost in the place of a calibrated method.

    Attributes:
        gap: of RTN in blocks of 32, by numpy, against the source.
        share: the method's own KL over RTN's, at the same positions.
    """

    gap: Gap
    share: float


@dataclass(frozen=True)
class GraphCard:
    """One runtime's graph.

    Attributes:
        verdict: what became of the gate.
        reason: the gate's figures, in a line.
        quantization: numpy with rounded weights and activations against the source.
        weights: the same with float32 activations: what rounding the weights alone cost; nothing where they were imported.
        rounding: what plain rounding would have cost; of calibrated int4 only.
        export: what lies in the file against the rounded weights; activations are float32 in both.
        export_by: how the file was read for it.
        activations: the runtime against rounded weights with float32 activations: what rounding activations costs there.
        activations_expected: the same by numpy, which rounds as the runtime does: far from it something is broken.
        run: the runtime against the source.
        perplexity: of the runtime, or by numpy where that is not here; `source_perplexity` of the source on the same text.
        runtime: package and version that ran it; None where none did.
        worst: the linears that lose most, worst first.
        notes: what was left out, and why.
    """

    verdict: Verdict
    reason: str
    quantization: Gap | None = None
    weights: Gap | None = None
    rounding: Rounding | None = None
    export: Gap | None = None
    export_by: str | None = None
    activations: Gap | None = None
    activations_expected: Gap | None = None
    run: Gap | None = None
    perplexity: float | None = None
    source_perplexity: float | None = None
    runtime: str | None = None
    worst: tuple[LinearError, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """The measurement of a bundle.

    Attributes:
        text: what was read; None where nothing was measured.
        calibration: sha256 of the token ids that scales, bits or activations were chosen by, or None.
        preset: "best" or "fast", which reads less.
        machine: processor and system that measured.
        graphs: by runtime.
        reason: why nothing was measured, or None.
    """

    graphs: Mapping[str, GraphCard]
    preset: str
    text: Text | None = None
    calibration: str | None = None
    machine: str | None = None
    reason: str | None = None
