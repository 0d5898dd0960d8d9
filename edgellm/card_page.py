"""The fidelity card as a page for people: FIDELITY.md in the bundle."""

from __future__ import annotations

from collections.abc import Iterator

from edgellm.card import Card, Gap, GraphCard

VERDICTS = {
    "passed": "passed its gate",
    "degraded": "past its gate, kept because that was asked for (--allow-degraded)",
    "chosen": "past its gate, kept because the method was named",
    "ungated": "measured; this method has no gate",
    "not measured": "not measured",
}


def page(card: Card, source: str) -> str:
    """Markdown."""
    return "\n".join([*_lines(card, source), ""])


def _lines(card: Card, source: str) -> Iterator[str]:
    yield "# Fidelity"
    yield ""
    yield f"How far this bundle is from {source}, as measured when it was made."
    if card.text is None:
        yield ""
        yield f"Nothing was measured: {card.reason}. `edgellm eval` does it now."
        return
    yield f"Text: {card.text.name}; {card.text.positions} positions in {card.text.pieces} pieces, sha256 of the token ids"
    yield f"`{card.text.sha256}`. Calibration: {f'`{card.calibration}`' if card.calibration else 'none'}."
    yield f"Machine: {card.machine}. Preset: {card.preset}."
    for name, graph in card.graphs.items():
        yield ""
        yield from _graph(name, graph)


def _graph(name: str, card: GraphCard) -> Iterator[str]:
    yield f"## {name}: {VERDICTS[card.verdict]}"
    yield ""
    yield f"{card.reason}."
    yield ""
    yield "| | KL, nats | 99th percentile | top-1 | positions |"
    yield "|---|---|---|---|---|"
    rows = {
        f"{card.runtime} against the source": card.run,
        "quantization (numpy)": card.quantization,
        "plain rounding in its place (numpy)": None if card.rounding is None else card.rounding.gap,
        f"export: {card.export_by}": card.export,
        "rounded activations in the runtime": card.activations,
        "rounded activations as expected (numpy)": card.activations_expected,
    }
    for what, gap in rows.items():
        if gap is not None:
            yield f"| {what} | {_row(gap)} |"
    yield ""
    if card.perplexity is not None and card.source_perplexity is not None:
        yield f"Perplexity {card.perplexity:.3f}, of the source {card.source_perplexity:.3f}."
    if card.worst:
        worst = ", ".join(f"{each.name.removesuffix('.weight')} {each.error:.4f}" for each in card.worst)
        yield f"Linears that lose most of their output (energy of the error over that of the output): {worst}."
    yield from card.notes


def _row(gap: Gap) -> str:
    return f"{gap.kl:.3g} ± {gap.kl_error:.1g} | {gap.kl_p99:.3g} | {gap.top1:.3f} | {gap.positions}"
