"""LiteRT-LM's `litert_lm_advanced_main --benchmark`, which runs the .litertlm that `edgellm export` packs.

Its options and what it prints are as in runtime/engine of https://github.com/google-ai-edge/LiteRT-LM, versions 0.10 to 0.17;
`litert_lm_main` of versions before prints nearly the same, and knows no number of threads. It counts time to the first token as
that of the prompt and of an average step.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgellm.benchmarks.hosts.binaries import Told
from edgellm.bundle import MANIFEST, Bundle, cache_dir, sha256_file

NAMES = ("litert_lm_advanced_main",)
ENGINE = "litert-lm"
RUNTIME = "tflite"
FILE = "model.litertlm"

TURN = r"^ *{name} Turn 1: Processed (\d+) tokens in (\S+) duration\."
LOAD = re.compile(r"^ *(?:- Init Total|Total init time): ([\d.]+) ms", re.MULTILINE)
PEAK = re.compile(r"Peak system ram usage: ([\d.]+)MB")
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def files(bundle: Bundle, folder: Path, threads: int) -> dict[str, Path]:
    """The export, which is made once for a bundle and kept in the user's cache."""
    from edgellm._version import __version__
    from edgellm.litertlm import export_litertlm

    name = f"{sha256_file(bundle.path / MANIFEST)[:32]}-{__version__}.litertlm"
    packed = cache_dir() / "litertlm" / name
    return {FILE: packed if packed.is_file() else export_litertlm(bundle.path, packed)}


def room(bundle: Bundle) -> int:
    """As `edgellm export` makes it where nothing else is said."""
    from edgellm.litertlm import DEFAULT_CONTEXT

    return min(bundle.spec.max_context, DEFAULT_CONTEXT)


def arguments(prompt: int, steps: int, threads: int) -> list[str]:
    """On the processors; the prompt's tokens are its own choice."""
    counts = {"benchmark_prefill_tokens": prompt, "benchmark_decode_tokens": steps, "num_cpu_threads": threads}
    numbers = [f"--{name}={count}" for name, count in counts.items()]
    flags = ["--benchmark=true", "--async=false", "--report_peak_memory_footprint=true"]
    return [f"--model_path={FILE}", "--backend=cpu", *flags, *numbers]


def parse(output: str) -> Told:
    """The first turn of its BenchmarkInfo, which is all there is of one prompt."""
    prompt, prefill = _turn(output, "Prefill")
    steps, decode = _turn(output, "Decode")
    load, peak = LOAD.search(output), PEAK.search(output)
    return Told(
        prompt,
        prefill,
        prefill + decode / steps,
        steps,
        decode,
        load=None if load is None else float(load[1]) / 1e3,
        rss=None if peak is None else round(float(peak[1]) * (1 << 20)),
    )


def _turn(output: str, name: str) -> tuple[int, float]:
    """Tokens and seconds."""
    found = re.search(TURN.format(name=name), output, re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"no '{name} Turn 1'")
    return int(found[1]), _seconds(found[2])


def _seconds(duration: str) -> float:
    """As Abseil formats durations: "819.9514ms", "1m2.5s", "1h0m0.25s"."""
    parts = re.findall(r"([\d.]+)(h|ms|us|ns|m|s)", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"'{duration}' is no duration")
    return sum(float(number) * UNITS[unit] for number, unit in parts)
