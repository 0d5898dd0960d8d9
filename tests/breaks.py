"""Conversions that are broken on purpose: each does one wrong thing to what is written, and says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgellm.converters.data import DataFile, Place

Break = Callable[[pytest.MonkeyPatch, str], None]


class _Scaled:
    """Rows whose scales come out a quarter too large, whoever made the codes."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def quantized(self, *arguments: Any) -> Any:
        made = self._rows.quantized(*arguments)
        return replace(made, scales=made.scales * np.float32(1.25))


def wrong_scale(patch: pytest.MonkeyPatch, target: str) -> None:
    """The scales of one linear are a quarter too large."""
    from edgellm.converters.onnx import data as onnx
    from edgellm.converters.tflite import data as tflite

    job = {"onnx": onnx, "tflite": tflite}[target].QuantizedJob
    write = job.write

    def broken(self: Any, data: DataFile, start: int, rows: Any, quantize: Any) -> None:
        write(self, data, start, _Scaled(rows) if "layers.1.down.weight" in self.name else rows, quantize)

    patch.setattr(job, "write", broken)


def cache_three_times(patch: pytest.MonkeyPatch, target: str) -> None:
    """The scales of an 8-bit cache are three times what they should be: coarser, and right otherwise."""
    _cache(patch, target, 3)


def cache_cut_off(patch: pytest.MonkeyPatch, target: str) -> None:
    """They reach over .6 of what keys and values take."""
    _cache(patch, target, 0.6)


def cache_a_little(patch: pytest.MonkeyPatch, target: str) -> None:
    """They are a hundredth too large in the values of one layer: less than any measurement would show."""
    _cache(patch, target, 1.01, layers=(1,), parts=("reach",))


def _cache(
    patch: pytest.MonkeyPatch,
    target: str,
    factor: float,
    layers: tuple[int, ...] | None = None,
    parts: tuple[str, ...] = ("low", "high", "reach"),
) -> None:
    import importlib

    module = importlib.import_module(f"edgellm.converters.{target}.export")
    plan = module.plan

    def broken(spec: Any, tensors: Any, recipe: Any, calibration: Any) -> Any:
        cache = tuple(
            replace(each, **{part: getattr(each, part) * np.float32(factor) for part in parts})
            if layers is None or layer in layers
            else each
            for layer, each in enumerate(calibration.cache)
        )
        return plan(spec, tensors, recipe, replace(calibration, cache=cache))

    patch.setattr(module, "plan", broken)


def nibble_order(patch: pytest.MonkeyPatch, target: str) -> None:
    """4-bit codes high nibble first, in one linear."""
    put = DataFile.put

    def broken(self: DataFile, place: Place, start: int, rows: int, values: Any) -> None:
        swapped = values.dtype == np.uint8 and values.shape[-1] > 1 and place.offset == broken.place  # type: ignore[attr-defined]
        put(self, place, start, rows, (values << 4) | (values >> 4) if swapped else values)

    from edgellm.converters.onnx import data as onnx
    from edgellm.converters.tflite import data as tflite

    job = {"onnx": onnx, "tflite": tflite}[target].QuantizedJob
    add = job.add.__func__  # type: ignore[attr-defined]

    def noticed(cls: Any, layout: Any, weight: Any, scheme: Any) -> Any:
        made = add(cls, layout, weight, scheme)
        if weight.name == "layers.1.down.weight":
            broken.place = made.codes.offset  # type: ignore[attr-defined]
        return made

    patch.setattr(job, "add", classmethod(noticed))
    patch.setattr(DataFile, "put", broken)


def layers_exchanged(patch: pytest.MonkeyPatch, target: str) -> None:
    """Two layers' MLPs have each other's weights, under their own names."""
    _exchange(patch, target, renamed=True)


def layers_crossed(patch: pytest.MonkeyPatch, target: str) -> None:
    """Two layers use each other's MLPs: every weight in the file is right, the graph is not."""
    _exchange(patch, target, renamed=False)


def _exchange(patch: pytest.MonkeyPatch, target: str, *, renamed: bool) -> None:
    import importlib

    module = importlib.import_module(f"edgellm.converters.{target}.export")
    on_grids = module.on_grids

    def broken(*arguments: Any) -> Any:
        weights = on_grids(*arguments)

        def weight(name: str) -> Any:
            layer, _, part = name.removeprefix("layers.").partition(".")
            if part.split(".")[0] not in ("gate", "up", "down"):
                return weights(name)
            other = weights(f"layers.{ {'0': '1', '1': '0'}.get(layer, layer) }.{part}")
            return replace(other, name=name) if renamed else other

        return weight

    patch.setattr(module, "on_grids", broken)
