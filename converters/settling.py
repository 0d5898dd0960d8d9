"""Quantizing weights while their inputs' statistics are at hand: layer by layer, onto a shelf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Protocol

import numpy as np

from edgellm.converters.decoder import Weights
from edgellm.converters.quantizers import Settle
from edgellm.converters.statistics import Statistics
from edgellm.converters.weights import Weight
from edgellm.scheme import QTensor, Scheme


class Keeper(Protocol):
    """Where codes go."""

    def put(self, name: str, codes: QTensor) -> None:
        """Keep the codes of a weight."""
        ...


class Settler:
    """Quantizes the linears of a layer by a method that wants their statistics. To be called by `calibrate`.

    Args:
        weights: by canonical name, once for each graph that is to be made: their schemes may differ.
        settle: the method.
        keeper: where codes go.
        workers: threads; each takes a share of the rows.
    """

    def __init__(self, weights: Sequence[Weights], settle: Settle, keeper: Keeper, workers: int) -> None:
        self._weights, self._settle, self._keeper, self._workers = weights, settle, keeper, workers

    def __call__(self, layer: int, statistics: Mapping[str, Statistics]) -> None:
        """Settle what has few bits; 8 bit are rounded to nearest later, as they are written."""
        with ThreadPoolExecutor(self._workers) as pool:
            for scheme, inputs, same in self._groups(statistics):
                # one stack for all weights that share inputs: they share the Hessian's factor too
                stack = np.concatenate([weight.tensor.array() for weight in same])
                inputs.factor  # noqa: B018, made here, so that no two threads make it
                shares = np.array_split(stack, min(self._workers, len(stack)))
                parts = list(pool.map(self._settle, shares, repeat(scheme), repeat(inputs)))
                whole, start = _joined(parts), 0
                for weight in same:
                    stop = start + weight.tensor.shape[0]
                    self._keeper.put(weight.name, _rows(whole, start, stop))
                    start = stop

    def _groups(self, statistics: Mapping[str, Statistics]) -> Iterable[tuple[Scheme, Statistics, list[Weight]]]:
        """Weights of one scheme and one input."""
        groups: dict[tuple[Scheme, int], dict[str, Weight]] = {}
        for name, inputs in statistics.items():
            for weight in (weights(name) for weights in self._weights):
                if weight.scheme is not None and weight.scheme.bits < 8 and weight.tensor.on_grid(weight.scheme, 0, 1) is None:
                    groups.setdefault((weight.scheme, id(inputs)), {})[name] = weight
        for (scheme, _), same in groups.items():
            yield scheme, statistics[next(iter(same))], list(same.values())


def _joined(parts: Sequence[QTensor]) -> QTensor:
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return QTensor(
        parts[0].scheme,
        (sum(part.shape[0] for part in parts), parts[0].shape[1]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
    )


def _rows(codes: QTensor, start: int, stop: int) -> QTensor:
    zeros = None if codes.zero_points is None else codes.zero_points[start:stop]
    return QTensor(codes.scheme, (stop - start, codes.shape[1]), codes.codes[start:stop], codes.scales[start:stop], zeros)


def needed_bytes(widths: Iterable[int], layer_bytes: int) -> int:
    """Anonymous memory that Hessians of inputs so wide take, the layer's weights held, and the widest one's factor made."""
    widths = list(widths)
    return 4 * sum(width * width for width in widths) + layer_bytes + 3 * 8 * max(widths) ** 2
