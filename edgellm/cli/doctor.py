"""`edgellm doctor`: what this machine offers, and what to install or change."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import click

from edgellm.cli._options import readable

# Package, what it is for, when it is needed, how it comes.
PACKAGES = (
    ("onnxruntime", "runs ONNX bundles", "to run bundles", "pip install 'edgellm[onnx]'"),
    ("ai-edge-litert", "runs TFLite bundles, and makes them", "for TFLite bundles", "pip install 'edgellm[tflite]'"),
    ("litert-lm-builder", "packs bundles for LiteRT-LM", "to export for LiteRT-LM", "pip install 'edgellm[litertlm]'"),
    ("onnx", "makes ONNX bundles", "to convert models", "pip install 'edgellm[convert]'"),
    ("huggingface-hub", "fetches models from the hub", "to convert models", "pip install 'edgellm[convert]'"),
)
LITTLE_MEMORY = 512_000_000


@dataclass(frozen=True)
class Finding:
    """One line of the report, and what to do if something could be better."""

    name: str
    text: str
    advice: str | None = None


@click.command(short_help="Say what this machine offers, and what would help.")
def command() -> None:
    """Say what this machine offers for running models, and what would help."""
    findings = [*_machine(), *_packages()]
    for finding in findings:
        click.echo(f"{finding.name:<16} {finding.text}")
    advice = [finding.advice for finding in findings if finding.advice]
    click.echo()
    for line in advice or ["nothing to do"]:
        click.echo(f"- {line}")


def _machine() -> list[Finding]:
    from edgellm._version import __version__
    from edgellm.benchmarks.machine import FAST_INT8, machine
    from edgellm.bundle import cache_dir
    from edgellm.runtimes.memory import available_bytes
    from edgellm.runtimes.threads import default_threads

    this = machine()
    if this.features is None:
        features, slow = "unknown on this system", None
    else:
        features = ", ".join(this.features) or "none that matter"
        slow = None if FAST_INT8 & set(this.features) else "this CPU has no int8 dot product: 4- and 8-bit models run slower"
    available = available_bytes()
    total = "unknown" if this.memory is None else readable(this.memory)
    little = available is not None and available < LITTLE_MEMORY
    return [
        Finding("edgellm", f"{__version__}, {this.python}"),
        Finding("system", f"{this.system}, {this.architecture}"),
        Finding("cpu", f"{this.cpu}, {this.cores} logical processors"),
        Finding("cpu features", features, slow),
        Finding("threads", f"{default_threads()} (what affinity, physical cores and the CPU quota leave)"),
        Finding(
            "memory",
            f"{total}, available {'unknown' if available is None else readable(available)}",
            "little memory is available: close programs, or raise the container's limit" if little else None,
        ),
        Finding("cache", str(cache_dir())),
    ]


def _packages() -> list[Finding]:
    findings = []
    for package, purpose, need, install in PACKAGES:
        try:
            findings.append(Finding(package, f"{importlib.metadata.version(package)}, {purpose}"))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, f"not installed, {purpose}", f"{need}: {install}"))
    return [*findings, *_old_runtime()]


def _old_runtime() -> list[Finding]:
    """tflite-runtime where it is: nobody has to get it who can have LiteRT."""
    try:
        version = importlib.metadata.version("tflite-runtime")
    except importlib.metadata.PackageNotFoundError:
        return []
    new = importlib.metadata.version("numpy").partition(".")[0] != "1"
    cure = "tflite-runtime needs an older numpy: pip install 'edgellm[tflite-runtime]' 'numpy<2'" if new else None
    return [Finding("tflite-runtime", f"{version}, runs tflite-compat bundles", cure)]
