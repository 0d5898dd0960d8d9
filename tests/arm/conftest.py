"""Boards and bundles for them, made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.conversion import convert
from tests import wheels
from tests.arm import asking, board, learned, roots, trimmed
from tests.arm.asking import Job
from tests.arm.board import Board
from tests.arm.same import Here, There


@pytest.fixture(scope="session")
def emulation() -> None:
    """Nothing; a test that needs boards is skipped where there can be none."""
    why = board.missing()
    if why is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def wheel(emulation: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def device_side(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip unpacks it."""
    return wheels.unpack(wheel, tmp_path_factory.mktemp("device") / "packages")


@pytest.fixture(scope="session")
def make_board(wheel: Path, device_side: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Board]:
    """A board by the name of its processor and the extra that is installed there."""
    folder = tmp_path_factory.mktemp("boards")

    @functools.cache
    def made(kind: str, extra: str) -> Board:
        packages = roots.packages(wheel, extra, board.KINDS[kind].architecture)
        system = roots.root(board.KINDS[kind].architecture)
        return board.make(folder / f"{kind}-{extra}", board.KINDS[kind], system, [device_side, packages])

    return made


@pytest.fixture(scope="session")
def small_model(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first layers; see `tests.arm.trimmed`."""
    return trimmed.write(models("smollm2"), tmp_path_factory.mktemp("trimmed") / "smollm2-trimmed.gguf")


@pytest.fixture(scope="session")
def learned_model(emulation: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one that is sure of what it says; see `tests.arm.learned`."""
    return learned.write(tmp_path_factory.mktemp("learned") / "source")


@pytest.fixture(scope="session")
def learned_jobs(learned_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Job]]:
    """What is asked of it in a runtime, by quantization."""
    folder = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def made(runtime: str) -> dict[str, Job]:
        found = {}
        for quant in ("fp32", "int8", "int4"):
            bundle = convert(learned_model, folder / f"{runtime}-{quant}", quant=quant, target=runtime)
            found[quant] = Job.of(bundle.path, runtime, learned.TEXT, learned.PROMPT, len(learned.TEXT) - len(learned.PROMPT))
        return found

    return made


@pytest.fixture(scope="session")
def small_jobs(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Job]]:
    """What is asked of SmolLM2's first layers at INT4, and of the same at float32, by quantization."""
    folder = tmp_path_factory.mktemp("small")

    @functools.cache
    def made(runtime: str) -> dict[str, Job]:
        found = {}
        for quant, method in (("fp32", None), ("int4", "rtn")):
            bundle = convert(small_model, folder / f"{runtime}-{quant}", quant=quant, target=runtime, method=method)
            found[quant] = Job.of(bundle.path, runtime, trimmed.TEXT, "The", 1)
        return found

    return made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of `tests.arm.same`, on each board of its module."""
    if "there" in metafunc.fixturenames and hasattr(metafunc.module, "KERNELS"):
        metafunc.parametrize("kind", list(metafunc.module.KERNELS), scope="module")


@pytest.fixture(scope="module")
def here(request: Any, learned_jobs: Any, small_jobs: Any) -> Here:
    """What this machine answers in a module's runtime."""
    small = small_jobs(request.module.RUNTIME)
    jobs = {**learned_jobs(request.module.RUNTIME), "smollm2": small["int4"]}
    return Here(jobs, {name: asking.here(job) for name, job in jobs.items()}, asking.here(small["fp32"]))


@pytest.fixture(scope="module")
def there(
    request: Any, kind: str, here: Here, make_board: Callable[[str, str], Board], tmp_path_factory: pytest.TempPathFactory
) -> There:
    """What a board answers to the same."""
    folder = tmp_path_factory.mktemp("asked") / kind
    return There(kind, asking.ask(make_board(kind, request.module.RUNTIME), here.jobs, folder))
