"""What a board lacks, and where it comes from."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts import wheels
from edgellm.benchmarks.hosts.wheels import Platform
from edgellm.errors import ResourceError, RuntimeUnavailable
from tests.wheels import unreachable

PI = Platform("3.11.2", "cpython", "aarch64", "glibc 2.36")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_tags_are_those_that_pip_would_take_there() -> None:
    """packaging's own list for this interpreter is the oracle."""
    tags = pytest.importorskip("packaging.tags")
    kind, version = platform.libc_ver()
    here = Platform(platform.python_version(), "cpython", platform.machine(), f"{kind} {version}")
    newest_first = list(dict.fromkeys(tag.platform for tag in tags.cpython_tags()))
    assert set(here.tags) <= set(newest_first)
    many = [tag for tag in newest_first if tag in here.tags and not tag.startswith("linux_")]
    assert many == list(here.tags[:-1])
    assert many[0] == next(tag for tag in newest_first if "linux_2" in tag)


def test_tags_of_others() -> None:
    assert PI.tags[:2] == ("manylinux_2_36_aarch64", "manylinux_2_35_aarch64")
    assert PI.tags[-3:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64")
    assert Platform("3.12.1", "cpython", "x86_64", "musl").tags == ("musllinux_1_2_x86_64", "musllinux_1_1_x86_64")
    assert Platform("3.13.0", "cpython", "armv7l", None).tags[0] == "manylinux_2_17_armv7l"
    assert Platform("3.13.0", "cpython", "armv7l", None).version == "3.13"
    assert len(Platform("3.13.0", "cpython", "armv7l", "glibc 2.99999999").tags) == 3


def test_requirements_are_those_of_setup_cfg() -> None:
    assert [each.partition(">")[0] for each in wheels.requirements(None)] == ["numpy", "tokenizers", "Jinja2"]
    for runtime, package in wheels.PACKAGES.items():
        found = wheels.requirements(runtime)
        assert found[0].startswith(package), found
    assert wheels.requirements("tflite_compat")[1] == "numpy<2"
    with pytest.raises(RuntimeUnavailable, match="no package is known for the runtime 'abacus'"):
        wheels.requirements("abacus")


@pytest.mark.parametrize(
    ("installed", "missing"),
    [
        ({}, ["numpy>=1.26", "onnxruntime>=1.32"]),
        ({"numpy": "1.26.0", "onnxruntime": "1.32.1"}, []),
        ({"NumPy": "2.4", "onnxruntime": "1.31.9"}, ["onnxruntime>=1.32"]),
        ({"numpy": "1.9", "onnxruntime": "1.32"}, ["numpy>=1.26"]),
        ({"numpy": "2.0rc1", "onnxruntime": "1.32+cpu"}, []),
        ({"numpy": "1.26.4-vendor", "onnxruntime": "1.32"}, ["numpy>=1.26"]),
    ],
)
def test_what_is_lacking(installed: dict[str, str], missing: list[str]) -> None:
    assert wheels.lacking(["numpy>=1.26", "onnxruntime>=1.32"], installed) == missing


def test_what_is_not_there_at_all() -> None:
    wanted = ["numpy>=1.26", "Jinja2>=3", "tflite-runtime==2.14.0"]
    assert wheels.absent(wanted, {"NumPy": "1.24.2", "jinja2": "2.0"}) == ["tflite-runtime==2.14.0"]


def test_numpy_2_is_too_new_for_the_old_runtime() -> None:
    assert wheels.lacking(["numpy>=1.26", "numpy<2"], {"numpy": "2.1.0"}) == ["numpy<2"]
    assert wheels.lacking(["numpy>=1.26", "numpy<2"], {"numpy": "1.26.4"}) == []


def test_edgellm_in_one_file_is_what_measures_and_nothing_else(tmp_path: Path) -> None:
    file = wheels.package()
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "there")
    assert not [name for name in names if "converters" in name or "/cli/" in name or name.endswith((".pyc", ".html"))]
    assert file.stat().st_size < 1_000_000
    code = "import edgellm, edgellm.benchmarks.hosts.there, edgellm.benchmarks.facts; print(edgellm.__file__)"
    environment = {"PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "there")


def test_the_same_code_gives_the_same_file(cache: Path) -> None:
    one = wheels.package()
    content, name = one.read_bytes(), one.name
    one.unlink()
    again = wheels.package()
    assert (again.name, again.read_bytes()) == (name, content)
    assert [path.name for path in again.parent.iterdir()] == [name], "nothing half-written"


def test_what_was_interrupted_leaves_nothing_and_no_room_is_an_error_of_this_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write, error in ((interrupted, KeyboardInterrupt), (full, ResourceError)):
        monkeypatch.setattr(zipfile.ZipFile, "writestr", write)
        with pytest.raises(error) as caught:
            wheels.package()
        assert not list((cache / "hosts/own").iterdir())
    assert str(caught.value).startswith(f"{cache}/hosts/own: cannot write: No space left on device; free some disk")


def test_nothing_fits_a_platform_that_is_not_there(cache: Path) -> None:
    strange = Platform("3.11.2", "cpython", "pdp11", "glibc 2.36")
    with pytest.raises(RuntimeUnavailable, match=r"no wheels of numpy>=1\.26 for Python 3\.11 on pdp11: .*; install them on"):
        asyncio.run(wheels.resolve(["numpy>=1.26"], strange))
    assert not list((cache / "hosts" / "wheels").iterdir()), "nothing half-done"
    with pytest.raises(RuntimeUnavailable, match="no wheels for pypy"):
        asyncio.run(wheels.resolve(["numpy"], Platform("3.11.2", "pypy", "aarch64", "glibc 2.36")))


@pytest.mark.slow
def test_wheels_for_a_raspberry_pi(cache: Path) -> None:
    wanted = [*wheels.requirements(None), *wheels.requirements("onnx")]
    try:
        files = asyncio.run(wheels.resolve(wanted, PI))
    except RuntimeUnavailable:
        if (why := unreachable()) is not None:
            pytest.skip(why)
        raise
    names = {file.name.split("-")[0].lower() for file in files}
    assert {"numpy", "tokenizers", "jinja2", "onnxruntime"} <= names
    for file in files:
        tag = file.stem.split("-")[-1]
        assert tag == "any" or "aarch64" in tag, file.name
    before = {file: file.stat().st_mtime_ns for file in files}
    assert asyncio.run(wheels.resolve(wanted, PI)) == files
    assert {file: file.stat().st_mtime_ns for file in files} == before, "nothing is asked for twice"
