"""A report made by hand: four files of llama.cpp's and one of ours, three rounds, two depths."""

from __future__ import annotations

from typing import Any

OURS = "edgellm_onnx:int4"
CLOSER, FINE = "llama_cpp:q8_0", "llama_cpp:q5_0"
TIED, BEST = "llama_cpp:q4_k_m-imatrix", "llama_cpp:q4_0"

SPEEDS = {CLOSER: (50, 55), FINE: (40, 35), OURS: (150, 70), TIED: (100, 60), BEST: (110, 50)}  # after 32, after 1024
DIVERGENCES = {
    CLOSER: [0.009, 0.011, 0.012, 0.008],
    FINE: [0.05, 0.05, 0.05, 0.05],
    OURS: [0.05, 0.15, 0.12, 0.08],
    TIED: [0.09, 0.112, 0.11, 0.096],
    BEST: [0.3, 0.3, 0.3, 0.3],
}
STORED = {OURS: (5.125, 4.625), FINE: (5.5, 5.5), TIED: (4.8, 4.8), BEST: (4.5, 4.5)}


def made() -> dict[str, Any]:
    """A fresh one, for a test to change."""
    samples = []
    for threads in (1, 2):
        for engine, (short, long) in SPEEDS.items():
            for number, more in enumerate((0, -10, 10)):
                key = {"round": number, "model": "tiny", "engine": engine, "threads": threads, "others": 0.0}
                times = {"decode_32": float(threads * (short + more)), "decode_1024": float(threads * (long + more))}
                samples.append({**key, "prefill_512": float(1000 + 10 * more), **times})
    engines = []
    for engine in SPEEDS:
        bits = dict(zip(("bits", "bits_half"), STORED[engine], strict=True)) if engine in STORED else None
        engines.append({"model": "tiny", "engine": engine, "size": 3_000_000, "stored": bits})
    quality = []
    for engine, each in DIVERGENCES.items():
        kl = sum(each) / len(each)
        quality.append({"model": "tiny", "engine": engine, "kl": kl, "kl_error": 0.01, "top1": 0.9, "divergences": each})
    return {
        "schema": 3,
        "kind": "peers",
        "command": "python -m edgellm.benchmarks.frontier --trials 3",
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {
            "cpu": "A CPU",
            "features": [],
            "cores": 2,
            "memory": None,
            "system": "Linux",
            "python": "CPython 3.11",
        },
        "quiet": {"load": 0.05, "others": 0.0, "busiest": "", "reasons": []},
        "versions": {"edgellm": "0.1"},
        "settings": {"threads": [1, 2], "trials": 3, "prefill": 512, "depths": [32, 1024], "steps": 64},
        "models": [{"name": "tiny", "source": "tiny.gguf"}],
        "engines": engines,
        "left_out": [{"model": "tiny", "engine": "llama_cpp:q6_k", "reason": "it broke"}],
        "quality": quality,
        "samples": samples,
    }
