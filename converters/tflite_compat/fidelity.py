"""What tflite-runtime 2.14 does to activations: rows in 8 bits, as LiteRT; weights in the file are told by their names."""

from __future__ import annotations

from edgellm.converters.tflite.fidelity import RUNS, as_written, cache_constants, numerics

__all__ = ["RUNS", "as_written", "cache_constants", "numerics"]
