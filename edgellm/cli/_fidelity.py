"""How close a bundle is to its source, as lines and tables of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgellm.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from edgellm.bundle import Bundle
    from edgellm.card import Card, GraphCard


def verdicts(bundle: Bundle) -> dict[str, str]:
    """What the bundle's card says, a line for each graph; nothing where there is no card."""
    from edgellm.card_page import verdict

    if bundle.fidelity is None:
        return {}
    return {name: f"{verdict(card)}: {card.reason}" for name, card in bundle.fidelity.graphs.items()}


def said(bundle: Bundle) -> list[str]:
    """The same, each with its graph."""
    return [f"{name}: {line}" for name, line in verdicts(bundle).items()]


def show(card: Card) -> None:
    """The whole card."""
    from rich.console import Console

    from edgellm.card_page import read, remarks

    for line in read(card):
        click.echo(plain(line.replace("`", "")))
    if card.text is None:
        return
    for name, graph in card.graphs.items():
        click.echo()
        Console().print(_table(name, graph))
        for line in remarks(graph):
            click.echo(plain(line))


def _table(name: str, card: GraphCard) -> Table:
    from rich.table import Table

    from edgellm.card_page import cells, rows

    table = Table()
    table.add_column(f"fidelity of {name}")
    for heading in ("KL, nats", "99 %", "top-1", "positions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for what, gap in rows(card).items():
        table.add_row(plain(what), *cells(gap))
    return table
