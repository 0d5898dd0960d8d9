"""The fidelity card as a page for people: FIDELITY.md in the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgellm.card import Card, Gap, GraphCard

VERDICTS = {
    "passed": "passed its gate",
    "degraded": "past its gate, kept because that was asked for (--allow-degraded)",
    "chosen": "past its gate, kept because the method was named",
    "ungated": "measured; this method has no gate",
    "not measured": "not measured",
}
NOT_RUN = "not run: "  # what such a note of a card begins with


def not_run(card: GraphCard) -> list[str]:
    """Why its runtime did not run a graph, if it did not."""
    return [note for note in card.notes if note.startswith(NOT_RUN)]


def verdict(card: GraphCard) -> str:
    """A graph's verdict; where nothing ran, that it rests on numpy's figures alone."""
    alone = card.verdict != "not measured" and card.run is None
    return VERDICTS[card.verdict] + (" by numpy alone" if alone else "")


def rows(card: GraphCard) -> Mapping[str, Gap]:
    """The gaps that were measured, by what they are, in the order in which people want them."""
    found = {
        f"{card.runtime} against the source": card.run,
        "quantization (numpy)": card.quantization,
        "rounded weights alone (numpy)": card.weights,
        "plain rounding in its place (numpy)": None if card.rounding is None else card.rounding.gap,
        f"export: {card.export_by}": card.export,
        "rounded activations in the runtime": card.activations,
        "rounded activations as expected (numpy)": card.activations_expected,
    }
    return {what: gap for what, gap in found.items() if gap is not None}


def cells(gap: Gap) -> tuple[str, str, str, str]:
    """A gap's KL, 99th percentile, top-1 and positions."""
    return f"{gap.kl:.3g} ± {gap.kl_error:.1g}", f"{gap.kl_p99:.3g}", f"{gap.top1:.3f}", str(gap.positions)


def read(card: Card) -> list[str]:
    """What was read, by what scales were chosen, and where: sentences of a card that was measured."""
    if card.text is None:
        return [f"Nothing was measured: {card.reason}. `edgellm eval` does it now."]
    text = card.text
    return [
        f"Text: {text.name}; {text.positions} positions in {text.pieces} pieces, sha256 of the token ids `{text.sha256}`.",
        f"Calibration: {f'sha256 of the token ids `{card.calibration}`' if card.calibration else 'none'}.",
        f"Machine: {card.machine}. Preset: {card.preset}.",
    ]


def remarks(card: GraphCard) -> Iterator[str]:
    """What the table does not say: perplexity, the worst linears, what was left out."""
    if card.perplexity is not None and card.source_perplexity is not None:
        yield f"Perplexity {card.perplexity:.3f}, of the source {card.source_perplexity:.3f}."
    if card.worst:
        worst = ", ".join(f"{each.name.removesuffix('.weight')} {each.error:.4f}" for each in card.worst)
        yield f"Linears that lose most of their output (energy of the error over that of the output): {worst}."
    yield from card.notes


def page(card: Card, source: str) -> str:
    """Markdown."""
    return "\n".join([*_lines(card, source), ""])


def _lines(card: Card, source: str) -> Iterator[str]:
    yield "# Fidelity"
    yield ""
    yield f"How far this bundle is from {source}, as measured when it was made."
    yield ""
    yield from read(card)
    if card.text is None:
        return
    for name, graph in card.graphs.items():
        yield ""
        yield from _graph(name, graph)


def _graph(name: str, card: GraphCard) -> Iterator[str]:
    yield f"## {name}: {verdict(card)}"
    yield ""
    yield f"{card.reason}."
    yield ""
    yield "| | KL, nats | 99th percentile | top-1 | positions |"
    yield "|---|---|---|---|---|"
    for what, gap in rows(card).items():
        yield f"| {what} | {' | '.join(cells(gap))} |"
    yield ""
    yield from remarks(card)
