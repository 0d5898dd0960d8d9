"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgellm.bundle import cache_dir

# Tests that run onnxruntime without our loader must not start its telemetry either; test_network.py looks without this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files run side by side, those that take minutes go first, and what is short fills the end."""
    if not hasattr(config, "workerinput"):
        return
    ranks: dict[Path, int] = {}
    for item in items:
        rank = 2 if "models" in getattr(item, "fixturenames", ()) else int(item.get_closest_marker("slow") is not None)
        ranks[item.path] = max(rank, ranks.get(item.path, 0))
    items.sort(key=lambda item: -ranks[item.path])


REAL_CACHE = cache_dir()
KEPT = ("models", "peers", "permuted", "browser")  # of the user's cache: what is costly to make


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the suite's own, so that its thousand tiny bundles leave nothing in the user's."""
    home = tmp_path_factory.mktemp("cache")
    (home / "edgellm").mkdir()
    for name in KEPT:
        (REAL_CACHE / name).mkdir(parents=True, exist_ok=True)
        (home / "edgellm" / name).symlink_to(REAL_CACHE / name, target_is_directory=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("EDGELLM_CACHE", raising=False)  # it would go before what tests set
        environment.setenv("XDG_CACHE_HOME", str(home))
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell ignores SIGINT for what it starts in the background, nohup ignores SIGHUP, and children would inherit that.

    Programs rightly keep ignoring what they were told to ignore; tests are about when they were not.
    """
    defaults = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    for name, handler in defaults.items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def unmeasured() -> Iterator[None]:
    """Conversions are not measured unless a test asks: it takes longer than they do, and random weights pass no gate.

    Tests of the command line do the same by `default_map`; see tests/cli/conftest.py.
    """
    from edgellm.conversion import convert

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convert.__kwdefaults__, "evaluate", False)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_text() -> Iterator[None]:
    """Hessians of tiny models need no long text; test_real_models.py looks at the real thing."""
    from edgellm.converters import preparation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "HESSIAN_TOKENS", 600)
        patch.setattr(preparation, "DIAGONAL_TOKENS", 300)
        yield


REAL_MODELS = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen2.5": "qwen2.5-0.5b.gguf",
    "gemma3": "gemma-3-270m-q4_k_m.gguf",
}


@pytest.fixture(scope="session")
def models() -> Callable[[str], Path]:
    """Path of a real model by short name; the test is skipped where it has not been fetched (`make models`)."""
    folder = REAL_CACHE / "models"

    def path(name: str) -> Path:
        file = folder / REAL_MODELS[name]
        if not file.is_file():
            pytest.skip(f"{file.name} is not in {folder}: run 'make models'")
        return file

    return path


@pytest.fixture(scope="session")
def compat_python() -> Path:
    """The interpreter of an environment with tflite-runtime, which cannot share the suite's numpy; see the Makefile."""
    own = os.environ.get("EDGELLM_COMPAT_PYTHON")
    python = Path(own) if own else Path(__file__).parents[1] / ".venv-compat/bin/python"
    found = python.exists() and subprocess.run([python, "-c", "import tflite_runtime"], capture_output=True).returncode == 0
    if not found:
        pytest.skip(f"{python} has no tflite-runtime: 'make test' makes one with Python 3.11 on Linux")
    return python


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama as a Hugging Face folder; see `tests.tiny_folder`."""
    from tests import tiny_folder

    return tiny_folder.write(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as a float32 bundle, so that its logits are the source's up to rounding."""
    from edgellm.conversion import convert

    return convert(tiny_source, tmp_path_factory.mktemp("bundle") / "tiny", quant="fp32").path
