"""onnxruntime-genai's `model_benchmark`, which runs a bundle's folder as it is.

Its options and what it prints are as in benchmark/c of https://github.com/microsoft/onnxruntime-genai, version 0.14 of May 2026
and later, which can feed random tokens: those before make their prompt by decoding it token by token, and not always to the
length that they say. One repetition is asked for, so that an average is a time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from edgellm.benchmarks.hosts.binaries import Told
from edgellm.bundle import Bundle
from edgellm.errors import BundleError

NAMES = ("model_benchmark",)
ENGINE = "onnxruntime-genai"
RUNTIME = "onnx"
CONFIG = "genai_config.json"

SECTION = r"^{name}:\n(?:\t.*\n)*?\tavg \(us\): +(?P<us>[\d.e+-]+)\n(?:\t.*\n)*?\tn: +(?P<n>\d+) \* (?P<tokens>\d+) token\(s\)"
PEAK = re.compile(r"^Peak working set size(?: \(bytes\))?: (\d+)", re.MULTILINE)  # the unit moved behind the number in 0.15


def files(bundle: Bundle, folder: Path, threads: int) -> dict[str, Path]:
    """The bundle but for its other graphs. How many threads, and that it is greedy, its settings say: no option does."""
    if CONFIG not in bundle.files:
        raise BundleError(f"the bundle has no {CONFIG}", where=bundle.path, fix="convert it with '--target onnx --kv fp32'")
    others = {name for key, graph in bundle.graphs.items() if key != RUNTIME for name in bundle.files_of(graph)}
    config = json.loads(bundle.file(CONFIG).read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    config["search"]["do_sample"] = False
    made = folder / CONFIG
    made.write_text(json.dumps(config), encoding="utf-8")
    return {name: bundle.file(name) for name in bundle.files if name not in others} | {CONFIG: made}


def room(bundle: Bundle) -> int:
    """The bundle's own context."""
    return bundle.spec.max_context


def arguments(prompt: int, steps: int, threads: int) -> list[str]:
    """One repetition, cold: rounds are ours. The first token that it generates comes of the prompt's logits."""
    counts = {"-l": prompt, "-g": steps + 1, "-r": 1, "-w": 0}
    return ["-i", ".", "--use_random_tokens", *(str(part) for pair in counts.items() for part in pair)]


def parse(output: str) -> Told:
    """Sections of averages, each with how many times of how many tokens went into it."""
    prefill, prompt = _section(output, r"Prompt processing \(time to first token\)")
    decode, steps = _section(output, "Token generation")
    sampling, _ = _section(output, "Token sampling")
    peak = PEAK.search(output)
    return Told(prompt, prefill, prefill + sampling, steps, decode, rss=None if peak is None else int(peak[1]))


def _section(output: str, name: str) -> tuple[float, int]:
    """Seconds, and the tokens that they were spent on."""
    found = re.search(SECTION.format(name=name), output, re.MULTILINE)
    if found is None:
        raise ValueError(f"no section '{name}' of times".replace("\\", ""))
    times = int(found["n"])
    return float(found["us"]) * times / 1e6, times * int(found["tokens"])
