"""What a board needs to run edgellm, as files of this machine: edgellm itself, and the wheels that its Python lacks.

The wheels are resolved here for the board's platform, so that a board needs neither the internet nor a compiler. What was
resolved once stays in the user's cache: the same board gets the same versions until `~/.cache/edgellm/hosts` is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from edgellm.bundle import cache_dir
from edgellm.errors import ResourceError, RuntimeUnavailable

PARTS = ("edgellm", "edgellm.benchmarks", "edgellm.runtimes")  # what measures; converters stay on the workstation
SUFFIXES = (".py", ".sh", ".txt")
TERMINAL = ("click", "rich")  # of the command line, which nobody types there
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip file knows: the same code gives the same file
OLDEST_GLIBC = 17  # that Python's wheels still name
PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "tflite_compat": "tflite-runtime"}


@dataclass(frozen=True)
class Platform:
    """What wheels have to fit.

    Attributes:
        python: "3.11.2".
        implementation: "cpython".
        architecture: "aarch64".
        libc: "glibc 2.36" or "musl".
    """

    python: str
    implementation: str
    architecture: str
    libc: str | None

    @property
    def version(self) -> str:
        """Of Python, as wheels name it: "3.11"."""
        return ".".join(self.python.split(".")[:2])

    @property
    def tags(self) -> tuple[str, ...]:
        """Platforms of wheels that run there (PEP 600, PEP 656)."""
        kind, _, number = (self.libc or "").partition(" ")
        if kind == "musl":
            return tuple(f"musllinux_1_{minor}_{self.architecture}" for minor in (2, 1))
        minor = int(number.split(".")[1]) if re.fullmatch(r"2\.\d{1,2}", number) else OLDEST_GLIBC
        named = [f"manylinux_2_{each}_{self.architecture}" for each in range(minor, OLDEST_GLIBC - 1, -1)]
        return (*named, f"manylinux2014_{self.architecture}", f"linux_{self.architecture}")


def package() -> Path:
    """edgellm as one file to import from, as it is imported here; the same code gives the same file.

    Raises:
        ResourceError: it cannot be written.
    """
    members: dict[str, Path] = {}
    for name in PARTS:
        folder = Path(next(iter(importlib.import_module(name).__path__)))
        files = folder.glob("*") if name == "edgellm" else folder.rglob("*")
        base = name.replace(".", "/")
        members |= {f"{base}/{file.relative_to(folder).as_posix()}": file for file in files if _is_ours(file, folder)}
    digest = hashlib.sha256()
    for member in sorted(members):
        digest.update(f"{member}\0{hashlib.sha256(members[member].read_bytes()).hexdigest()}\n".encode())
    target = _cache() / "own" / f"edgellm-{digest.hexdigest()[:16]}.zip"
    if not target.is_file():
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        with _kept(target.parent):
            try:
                with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                    for member in sorted(members):
                        archive.writestr(zipfile.ZipInfo(member, EPOCH), members[member].read_bytes(), zipfile.ZIP_DEFLATED)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    return target


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Something is written into a folder of the cache. Raises ResourceError: it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        fix = "free some disk, or name another folder by EDGELLM_CACHE"
        raise ResourceError(f"cannot write: {error.strerror or error}", where=folder, fix=fix) from error


def _is_ours(file: Path, folder: Path) -> bool:
    inside = file.relative_to(folder).parts
    hidden = any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in inside)
    return file.suffix in SUFFIXES and not hidden and file.is_file()


def requirements(runtime: str | None) -> list[str]:
    """What edgellm itself asks for, or its extra of a runtime; "numpy>=1.26"."""
    wanted = PACKAGES.get(runtime or "")
    if runtime is not None and wanted is None:
        raise RuntimeUnavailable(f"no package is known for the runtime '{runtime}'", fix="install it on the board by hand")
    found: dict[str, None] = {}
    for requirement in map(Requirement, importlib.metadata.requires("edgellm") or ()):
        name = canonicalize_name(requirement.name)
        extra = requirement.marker is not None and "extra" in str(requirement.marker)
        if (name == wanted) if extra else (runtime is None and name not in TERMINAL):
            found[f"{requirement.name}{requirement.specifier}"] = None
    return [*found, "numpy<2"] if runtime == "tflite_compat" else [*found]


def lacking(wanted: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """Those of the requirements that packages of these versions do not meet."""
    there: dict[str, str] = {canonicalize_name(name): version for name, version in installed.items()}
    return [each for each in wanted if not _meets(there.get(_name(each)), Requirement(each))]


def _meets(version: str | None, requirement: Requirement) -> bool:
    try:
        return version is not None and requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:  # of a package that a distribution has named in its own way
        return False


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def absent(wanted: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """Those of the requirements of which there is no version at all."""
    there = {canonicalize_name(name) for name in installed}
    return [each for each in wanted if _name(each) not in there]


async def resolve(wanted: Sequence[str], platform: Platform, *, alone: bool = False) -> list[Path]:
    """Wheels of these packages and of all that they need, for a platform; from the cache where they were asked for before.

    Args:
        alone: without what they need.

    Raises:
        RuntimeUnavailable: there are none for it, or pip is missing here, or cannot reach its index.
        ResourceError: they cannot be kept here.
    """
    if platform.implementation != "cpython":
        raise RuntimeUnavailable(f"no wheels for {platform.implementation}", fix="give a CPython by python = in hosts.toml")
    tags = [option for tag in platform.tags for option in ("--platform", tag)]
    choice = ["--only-binary=:all:", "--implementation", "cp", "--python-version", platform.version, *tags, *sorted(wanted)]
    choice = ["--no-deps", *choice] if alone else choice
    folder = _cache() / "wheels" / hashlib.sha256("\0".join(choice).encode()).hexdigest()[:16]
    if not folder.is_dir():
        with _kept(folder.parent):
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial"))
            try:
                await _download([*choice, "--dest", str(partial)], wanted, platform)
                if not folder.is_dir():  # another board of the same kind may have been faster
                    partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.glob("*.whl"))


async def _download(options: Sequence[str], wanted: Sequence[str], platform: Platform) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", *options]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        _, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = [line.removeprefix("ERROR: ") for line in errors.decode(errors="replace").splitlines() if line.strip()]
        told = next((line for line in lines if "No module named pip" in line), lines[-1] if lines else "pip gave no reason")
        what = f"no wheels of {', '.join(wanted)} for Python {platform.version} on {platform.architecture}: {told}"
        raise RuntimeUnavailable(what, fix="install them on the board, or choose another --runtime")


def unpacked_bytes(wheel: Path) -> int:
    """What a wheel takes once it is unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(member.file_size for member in archive.infolist())


def _cache() -> Path:
    return cache_dir() / "hosts"
