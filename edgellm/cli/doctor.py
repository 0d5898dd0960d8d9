"""`edgellm doctor`: what this machine or a board offers, and what to install or change."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from edgellm.cli._doctor_device import Finding, device, features, system
from edgellm.cli._options import readable
from edgellm.errors import UsageError, plain

if TYPE_CHECKING:
    from edgellm.benchmarks.facts import Looked

# Package, what it is for, when it is needed, how it comes.
PACKAGES = (
    ("onnxruntime", "runs ONNX bundles", "to run bundles", "pip install 'edgellm[onnx]'"),
    ("ai-edge-litert", "runs TFLite bundles, and makes them", "for TFLite bundles", "pip install 'edgellm[tflite]'"),
    ("litert-lm-builder", "packs bundles for LiteRT-LM", "to export for LiteRT-LM", "pip install 'edgellm[litertlm]'"),
    ("onnx", "makes ONNX bundles", "to convert models", "pip install 'edgellm[convert]'"),
    ("huggingface-hub", "fetches models from the hub", "to convert models", "pip install 'edgellm[convert]'"),
)
LITTLE_MEMORY = 512_000_000
TELEMETRY = "ORT_DISABLE_TELEMETRY"  # onnxruntime's own switch


@click.command(short_help="Say what this machine or a board offers, and what would help.")
@click.option("--host", metavar="H", help="Look at a board instead: ssh://user@board, or a name of hosts.toml.")
def command(host: str | None) -> None:
    """Say what this machine offers for running models, and what would help. What it does not tell is left out."""
    findings = [*_machine(), *_packages()] if host is None else _elsewhere(_look(host))
    for finding in findings:
        click.echo(f"{finding.name:<16} {plain(finding.text)}")
    advice = [finding.advice for finding in findings if finding.advice]
    click.echo()
    for line in advice or ["nothing to do"]:
        click.echo(f"- {plain(line)}")


def _machine() -> list[Finding]:
    from edgellm._version import __version__
    from edgellm.benchmarks import facts
    from edgellm.benchmarks.machine import machine
    from edgellm.bundle import cache_dir
    from edgellm.runtimes.memory import available_bytes
    from edgellm.runtimes.threads import default_threads

    this = machine()
    available = available_bytes()
    return [
        Finding("edgellm", f"{__version__}, {this.python}"),
        Finding("system", f"{this.system}, {this.architecture}"),
        Finding("cpu", f"{this.cpu}, {this.cores} logical processors"),
        features(this.features),
        Finding("threads", f"{default_threads()} (what affinity, physical cores and the CPU quota leave)"),
        memory(this.memory, available),
        *device(facts.here()),
        Finding("cache", str(cache_dir())),
    ]


def memory(total: int | None, available: int | None) -> Finding:
    """How much there is, and whether that is little."""
    little = available is not None and available < LITTLE_MEMORY
    whole, free = ("unknown" if size is None else readable(size) for size in (total, available))
    return Finding(
        "memory",
        f"{whole}, available {free}",
        "little memory is available: close programs, or raise the container's limit" if little else None,
    )


def _packages() -> list[Finding]:
    from edgellm.runtimes import tflite

    findings = []
    for package, purpose, need, install in PACKAGES:
        unfit = tflite.unfit() if package == tflite.PACKAGE else None
        if unfit is not None:
            findings.append(Finding(package, f"not for this processor, {purpose}", f"{unfit}: use ONNX bundles"))
            continue
        try:
            findings.append(Finding(package, f"{importlib.metadata.version(package)}, {purpose}"))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, f"not installed, {purpose}", f"{need}: {install}"))
    found = {name: version for name in ("onnxruntime", "tflite-runtime", "numpy") if (version := _version(name))}
    return [*findings, *_old_runtime(found), *_telemetry(found, off=os.environ.get(TELEMETRY) == "1")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _old_runtime(packages: Mapping[str, str]) -> list[Finding]:
    """tflite-runtime where it is: nobody has to get it who can have LiteRT."""
    if "tflite-runtime" not in packages:
        return []
    new = packages.get("numpy", "1").partition(".")[0] != "1"
    cure = "tflite-runtime needs an older numpy: pip install 'edgellm[tflite-runtime]' 'numpy<2'" if new else None
    return [Finding("tflite-runtime", f"{packages['tflite-runtime']}, runs tflite-compat bundles", cure)]


def _telemetry(packages: Mapping[str, str], *, off: bool | None) -> list[Finding]:
    """edgellm turns it off where it comes first, which a program of the user's own may not let it; `off` is for all programs,
    and None where nobody knows what their environment is."""
    if "onnxruntime" not in packages:
        return []
    if off:
        return [Finding("telemetry", f"off for all programs ({TELEMETRY}=1)")]
    there = "" if off is not None else " there, if that is not done"
    advice = f"onnxruntime sends telemetry where a program imports it before edgellm: set {TELEMETRY}=1 for all programs{there}"
    return [Finding("telemetry", "off in edgellm, and on where onnxruntime is imported before it", advice)]


def _look(name: str) -> Looked:
    """Raises EdgeError: no such host, or one that cannot be reached or tells nothing."""
    from edgellm.benchmarks import hosts
    from edgellm.benchmarks.hosts import fleet

    targets = fleet.resolve([name])
    if len(targets) != 1:
        raise UsageError(f"{len(targets)} hosts", where="--host", fix="name one of them")
    host = hosts.host(targets[0].url)
    if not isinstance(host, hosts.Looker):
        raise UsageError("such a host tells nothing of itself", where=targets[0].url, fix="give ssh://user@board")
    return host.look(targets[0])


def _elsewhere(looked: Looked) -> list[Finding]:
    facts, python = looked.facts, looked.python
    findings = [*system(facts), memory(facts.memory, facts.available), *device(facts)]
    if python is None and facts.android is not None:  # nobody expects one there
        return findings
    if python is None:
        return [*findings, Finding("python", "none that edgellm can use", "install Python 3.11 or later there")]
    findings.append(Finding("python", f"{python.version}, {python.path}"))
    findings += [Finding(name, f"{version}, installed there") for name, version in python.packages.items()]
    findings += _telemetry(python.packages, off=None)
    old = [finding for finding in _old_runtime(python.packages) if finding.advice]
    return [*findings, *(Finding("numpy", "too new for tflite-runtime", each.advice) for each in old)]
