"""Boards and bundles for them, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.conversion import convert
from tests import wheels
from tests.arm import board, roots, trimmed
from tests.arm.asking import Job, ids
from tests.arm.board import Board

PROMPT = "Once upon a time"
TEXT = (
    "The history of the printing press begins in China, where woodblock printing on paper was common by the year 900. "
    "Movable type of baked clay came some two hundred years later, and metal type was cast in Korea before Gutenberg was born."
)


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
def jobs(
    emulation: None, tiny_source: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Job]]:
    """By runtime: what is asked, by "model quantization"."""
    folder = tmp_path_factory.mktemp("bundles")

    def made(runtime: str) -> dict[str, Job]:
        found = {}
        for quant in ("fp32", "int8", "int4"):
            bundle = convert(tiny_source, folder / f"tiny-{runtime}-{quant}", quant=quant, target=runtime)
            found[f"tiny {quant}"] = Job(str(bundle.path), runtime, PROMPT, 48, tuple(ids(160, 3, 259)))
        for quant in ("int8", "int4"):
            bundle = convert(small_model, folder / f"smollm2-{runtime}-{quant}", quant=quant, target=runtime)
            found[f"smollm2 {quant}"] = Job(str(bundle.path), runtime, PROMPT, 8, tuple(trimmed.ids(bundle.path, TEXT)))
        return found

    return made
