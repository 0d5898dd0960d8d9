"""What boards are made of, kept in the user's cache: systems of another architecture, and packages for them.

Both come from where this machine's own come from: the mirror in apt's settings, the index in pip's. Nothing is installed or run
while they are made, so no compiler and no privileges are needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgellm.bundle import cache_dir
from tests import wheels

CACHE = cache_dir() / "arm"
PACKAGES = {
    "arm64": ("libc6", "libstdc++6", "libgcc-s1", "zlib1g", "python3-minimal", "libpython3-stdlib"),
    "armhf": ("libstdc++6", "libatomic1", "python3-minimal", "libpython3-stdlib", "python3-numpy", "python3-markupsafe"),
}
RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "tflite-runtime": "tflite-runtime"}
MACHINES = {"arm64": "aarch64", "armhf": "armv7l"}


class CannotMake(Exception):
    """Why a root or packages cannot be had, in a line."""


def root(architecture: str) -> Path:
    """The files of this machine's Debian for "arm64" or "armhf" with its Python.

    Raises:
        CannotMake: this is no Debian, or its mirror cannot be reached.
    """
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    packages = PACKAGES[architecture]

    def build(folder: Path) -> None:
        options = folder.with_name("apt.conf")
        options.write_text(_said(["apt-config", "dump", "Acquire"]), encoding="utf-8")
        # without a chroot: what is only unpacked needs neither root nor a user namespace
        how = ["--mode=chrootless", "--variant=extract", "--quiet", f"--aptopt={options}"]
        what = [f"--arch={architecture}", f"--include={','.join(packages)}", codename]
        _said(["mmdebstrap", *how, *what, str(folder), _source(codename)])
        folder.chmod(0o755)
        libraries = folder / "usr/lib/arm-linux-gnueabihf"
        for library in libraries.glob("*/lib*.so.3"):  # what Debian's alternatives would link, were they installed
            (libraries / library.name).symlink_to(library.relative_to(libraries))

    return _kept(f"{codename}-{architecture}", packages, build)


def packages(wheel: Path, extra: str, architecture: str, python: str = "3.11") -> Path:
    """A folder with all that pip finds this wheel to need on a board, edgellm itself left out.

    It takes the versions that are installed here, so that what differs on the board is the board.

    Args:
        wheel: of edgellm.
        extra: "onnx", "tflite" or "tflite-runtime"; on armhf the last.

    Raises:
        CannotMake: there is no wheel of a package for it, or no index.
    """
    if architecture == "armhf":
        return _listed(extra, architecture, python)
    same = ("tokenizers", "jinja2") if extra == "tflite-runtime" else ("tokenizers", "jinja2", "numpy", RUNTIMES[extra])
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in same]

    def build(folder: Path) -> None:
        constraints = folder.with_name("constraints.txt")
        constraints.write_text("\n".join(pins), encoding="utf-8")
        target = ["--target", str(folder), "--constraint", str(constraints), f"{wheel}[{extra}]"]
        _said([*wheels.pip(MACHINES[architecture], python), *target])
        for own in ("edgellm", *(info.name for info in folder.glob("edgellm-*.dist-info"))):
            shutil.rmtree(folder / own)

    return _kept(f"{extra}-{architecture}", [*wheels.requirements(wheel), *pins, python], build)


def _listed(extra: str, architecture: str, python: str) -> Path:
    """The few packages of which there are wheels for a 32-bit board; numpy is Debian's there.

    pip looks at this machine where a requirement depends on the machine, so it cannot find out what those packages need.
    """
    pins = [f"tokenizers=={importlib.metadata.version('tokenizers')}", f"jinja2=={importlib.metadata.version('jinja2')}"]
    wanted = [*pins, f"{RUNTIMES[extra]}==2.14.0"]

    def build(folder: Path) -> None:
        _said([*wheels.pip(MACHINES[architecture], python), "--no-deps", "--target", str(folder), *wanted])

    return _kept(f"{extra}-{architecture}", [*wanted, python], build)


def _source(codename: str) -> str:
    """The line for this machine's own mirror."""
    form = "$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
    for line in _said(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines():
        release, component, uri = line.split("|")
        if codename and (release, component) == (codename, "main"):
            return f"deb {uri} {codename} main"
    raise CannotMake(f"apt's settings name no mirror of Debian's '{codename}'")


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise CannotMake(f"{command[0]}: {' / '.join(last)}")
    return done.stdout


def _kept(name: str, parts: Sequence[str], build: Callable[[Path], None]) -> Path:
    """The folder of this name and content, made first if it is not there; it appears whole, whoever else makes it too."""
    target = CACHE / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone(CACHE / f".{target.name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=CACHE) as scratch:
                build(Path(scratch) / "made")
                (Path(scratch) / "made").rename(target)
    return target


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
