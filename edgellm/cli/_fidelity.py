"""How close a bundle is to its source, as lines of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.bundle import Bundle


def verdicts(bundle: Bundle) -> dict[str, str]:
    """What the bundle's card says, a line for each graph; nothing where there is no card."""
    from edgellm.card_page import VERDICTS

    if bundle.fidelity is None:
        return {}
    return {name: f"{VERDICTS[card.verdict]}: {card.reason}" for name, card in bundle.fidelity.graphs.items()}


def said(bundle: Bundle) -> list[str]:
    """The same, each with its graph."""
    return [f"{name}: {line}" for name, line in verdicts(bundle).items()]
