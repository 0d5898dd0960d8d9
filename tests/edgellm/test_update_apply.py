"""Applying an update: the new bundle whole, or one clear line and the old bundle whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgellm
from edgellm.bundle import Bundle
from edgellm.errors import BundleError, EdgeError, ResourceError
from edgellm.update_apply import apply, roll_back
from edgellm.update_diff import diff
from edgellm.update_file import MAGIC, NewFile, Part, Update, Writer, open_update
from tests.bundles import content, variant

WEIGHTS = random.Random(5).randbytes(300_000)
OTHERS = WEIGHTS[:100_000] + b"another adapter" * 1000 + WEIGHTS[115_000:]


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An old bundle, a new one, and the update between them."""
    folder = tmp_path_factory.mktemp("pair")
    old = variant(tiny_bundle, folder / "old", {"weights": WEIGHTS, "below/gone": b"gone"})
    new = variant(tiny_bundle, folder / "new", {"weights": OTHERS, "below/new": b"new", "empty": b""})
    return old, new, diff(old, new, folder / "update").path


@pytest.fixture
def bundle(pair: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair[0], tmp_path / "place" / "bundle"))


def beside(bundle: Path) -> list[str]:
    return sorted(entry.name for entry in bundle.parent.iterdir())


def refused(kind: type[EdgeError], message: str, update: Path, bundle: Path) -> None:
    """One line, the bundle as it was, and nothing beside it."""
    before = content(bundle), beside(bundle)
    with pytest.raises(kind, match=message) as error:
        apply(update, bundle)
    assert "\n" not in str(error.value)
    assert (content(bundle), beside(bundle)) == before


def test_the_new_bundle_loads_and_the_old_one_is_kept(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    old, new, update = pair
    assert apply(update, bundle).path == bundle
    assert content(bundle) == content(new)
    assert content(bundle.with_name("bundle.previous")) == content(old)
    assert beside(bundle) == ["bundle", "bundle.previous"]
    with edgellm.load(bundle) as llm:
        llm.generate("Hi", max_tokens=2)


def test_what_did_not_change_is_linked(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    apply(pair[2], bundle)
    previous = bundle.with_name("bundle.previous")
    assert (bundle / "model.onnx.data").samefile(previous / "model.onnx.data")
    assert not (bundle / "weights").samefile(previous / "weights")


def test_files_are_not_hashed_again_at_the_next_load(
    pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    apply(pair[2], bundle)
    weights = bundle / "weights"
    before = weights.stat()
    weights.write_bytes(bytes(before.st_size))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    Bundle.open(bundle).ensure_verified()  # only hashing could tell
    with pytest.raises(BundleError):
        Bundle.open(bundle).verify()


def test_applied_twice_is_applied_once(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    apply(pair[2], bundle)
    there = (bundle / "weights").stat().st_ino
    apply(pair[2], bundle)
    assert (bundle / "weights").stat().st_ino == there
    assert content(bundle.with_name("bundle.previous")) == content(pair[0])


def test_back_and_forth(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    apply(pair[2], bundle)
    roll_back(bundle)
    assert (content(bundle), content(bundle.with_name("bundle.previous"))) == (content(pair[0]), content(pair[1]))
    roll_back(bundle)
    assert (content(bundle), content(bundle.with_name("bundle.previous"))) == (content(pair[1]), content(pair[0]))
    assert beside(bundle) == ["bundle", "bundle.previous"]


def test_updates_follow_each_other(pair: tuple[Path, Path, Path], bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    apply(pair[2], bundle)
    third = variant(tiny_bundle, tmp_path / "third", {"weights": WEIGHTS[::-1]})
    apply(diff(pair[1], third, tmp_path / "update").path, bundle)
    assert content(bundle) == content(third)
    assert content(bundle.with_name("bundle.previous")) == content(pair[1])
    assert beside(bundle) == ["bundle", "bundle.previous"]


def test_a_link_to_the_bundle_stays_a_link(pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle, target_is_directory=True)
    apply(pair[2], tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert content(tmp_path / "current") == content(pair[1])


def test_nothing_to_roll_back_to(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.previous: there is nothing to roll back to"):
        roll_back(bundle)


def test_a_damaged_previous_bundle_stays_where_it_is(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    apply(pair[2], bundle)
    weights = bundle.with_name("bundle.previous") / "weights"
    weights.write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(BundleError, match="content differs"):
        roll_back(bundle)
    assert content(bundle) == content(pair[1])


def test_something_else_of_that_name_is_not_removed(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    (bundle.parent / "bundle.previous").mkdir()
    (bundle.parent / "bundle.previous" / "notes").write_text("mine", encoding="utf-8")
    refused(BundleError, r"bundle\.previous: the old bundle is to get this name, and it is taken; remove it", pair[2], bundle)
    assert (bundle.parent / "bundle.previous" / "notes").exists()


def test_another_base(pair: tuple[Path, Path, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "place" / "other"))
    refused(BundleError, "other: the update was made from another bundle than this one", pair[2], other)


def test_a_damaged_base(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    (bundle / "weights").write_bytes(bytes(len(WEIGHTS)))
    refused(BundleError, "bundle: the bundle is damaged: 'weights' would not come out right", pair[2], bundle)


def test_a_damaged_file_that_the_update_does_not_touch(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[7] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    refused(BundleError, "bundle: the bundle is damaged: 'model.onnx.data'", pair[2], bundle)


def test_every_damaged_byte_is_found(pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path) -> None:
    whole = pair[2].read_bytes()
    damaged = tmp_path / "damaged"
    chance = random.Random(3)
    for place in [0, len(MAGIC), len(whole) - 1, len(whole) - 60, *(chance.randrange(len(whole)) for _ in range(30))]:
        wrong = bytearray(whole)
        wrong[place] ^= 1 << chance.randrange(8)
        damaged.write_bytes(wrong)
        refused(BundleError, "the update is damaged|not an update", damaged, bundle)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9999])
def test_a_truncated_update(pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path, share: float) -> None:
    whole = pair[2].read_bytes()
    (tmp_path / "short").write_bytes(whole[: int(share * len(whole))])
    refused(BundleError, "short: (the update is damaged; fetch it again|not an update)", tmp_path / "short", bundle)


def test_no_update_there(bundle: Path, tmp_path: Path) -> None:
    refused(BundleError, "nothing: cannot be read: No such file", tmp_path / "nothing", bundle)
    refused(BundleError, "cannot be read: Is a directory", tmp_path, bundle)


Change = Callable[[dict[str, Any]], object]


def forged(update: Path, target: Path, change: Change) -> Path:
    """An update with another header, whose digest is right."""
    import hashlib

    whole = update.read_bytes()
    tail = 8 + 32 + len(MAGIC)
    length = int.from_bytes(whole[-tail:][:8], "little")
    header = json.loads(whole[-tail - length : -tail])
    change(header)
    text = json.dumps(header).encode()
    end = len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC
    target.write_bytes(whole[: -tail - length] + text + end)
    return target


def set_weights(**values: Any) -> Change:
    return lambda header: header["files"]["weights"].update(values)


def rename(to: str) -> Change:
    return lambda header: header["files"].update({to: header["files"]["below/new"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((rename(name), "not a plain relative path") for name in ("../out", "/tmp/out", "a/../../out", "C:\\out", "a\0b", "")),
        (lambda header: header["sources"].append("../secret"), "not a plain relative path"),
        (lambda header: header.update(format=2), r"update format 2 is newer than this edgellm reads \(1\); upgrade edgellm"),
        (lambda header: header.update(sources=["tokenizer.json"] * len(header["sources"])), "takes more for 'model.onnx'"),
        (lambda header: header.update(sources=["secret"] * len(header["sources"])), "takes 'secret' from the old bundle"),
        (lambda header: header["files"].pop("edgellm.json"), "no edgellm.json"),
        (lambda header: header["files"].pop("tokenizer.json"), "its files are not those of the bundle in it"),
        (rename("another"), "its files are not those of the bundle in it"),
        (rename("/".join("a" * 17)), "is longer than 1024 bytes or deeper than 16 folders; do not use it"),
        (rename("a" * 1025), "is longer than 1024 bytes or deeper than 16 folders; do not use it"),
        (rename("\ud800"), "is not a name of a file; do not use it"),
        (rename(chr(0xDC80)), "is not a name of a file; do not use it"),
        (lambda header: header["payload"].update(size=1), "its payload has another size"),
        (lambda header: header.update(result="0" * 64), "no edgellm.json"),
        (lambda header: header.update(base="z"), "a sha256 is none"),
        (set_weights(size=1), "the parts of 'weights' are not of its size"),
        (set_weights(size=-1), "has a size or parts that cannot be"),
        (set_weights(parts=[1, 2, 3]), "has a size or parts that cannot be"),
        (set_weights(parts=[99, 0, 300_000, 300_000]), "has a part that cannot be"),
        (set_weights(parts=[-2, 0, 300_000, 300_000]), "has a part that cannot be"),
        (set_weights(parts=[-1, 0, 300_000, 1 << 40]), "has a part that cannot be"),
        (set_weights(parts=[-1, 0, 1 << 30, 10], size=1 << 30), "has a part that cannot be"),
        (set_weights(parts=[-1, -5, 300_000, 300_000]), "has a part that cannot be"),
        (set_weights(parts=[0, 1 << 60, 300_000, 300_000]), "takes more for 'weights' than the old bundle has"),
        (set_weights(parts=["a"]), "is not a whole number"),
        (lambda header: header.update(more=1), "unknown field 'more'"),
    ],
)
def test_a_hostile_header(pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path, change: Change, message: str) -> None:
    (tmp_path / "place" / "secret").write_text("secret", encoding="utf-8")
    refused(BundleError, message, forged(pair[2], tmp_path / "forged", change), bundle)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["forged", "place"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_other_value_anywhere_is_refused_or_harmless(
    pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """One value of the header, picked at random, becomes something else: the bundle stays, or becomes the new one."""

    def change(header: dict[str, Any]) -> None:
        parent: Any = header
        while True:
            key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))))
            if not (isinstance(parent[key], dict | list) and parent[key] and data.draw(st.booleans())):
                break
            parent = parent[key]
        parent[key] = data.draw(JSON)

    update = forged(pair[2], tmp_path / "forged", change)
    try:
        apply(update, bundle)
    except EdgeError:
        assert (content(bundle), beside(bundle)) == (content(pair[0]), ["bundle"])
    else:
        assert content(bundle) == content(pair[1])
        roll_back(bundle)
        shutil.rmtree(bundle.with_name("bundle.previous"))


def test_a_link_in_the_bundle_does_not_reach_outside(pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path) -> None:
    """A file that the manifest does not list is not checked when a bundle is opened."""
    (tmp_path / "secret").write_bytes(b"secret")
    (bundle / "model.sig").symlink_to(tmp_path / "secret")

    def take(header: dict[str, Any]) -> None:
        header["files"]["model.sig"] = {"size": 6, "sha256": "0" * 64, "parts": [len(header["sources"]), 0, 6, 6]}
        header["sources"].append("model.sig")

    refused(BundleError, "takes 'model.sig' from the old bundle", forged(pair[2], tmp_path / "forged", take), bundle)


def test_a_bomb_is_no_larger_than_it_says(pair: tuple[Path, Path, Path], bundle: Path, tmp_path: Path) -> None:
    """A megabyte of zeros deflates to a kilobyte; a header that calls it shorter or longer does not get another length."""
    with open_update(pair[2]) as update:
        header = update.header
    for length, said in ((1 << 20, 5), (5, 1 << 20)):
        with (tmp_path / "bomb").open("wb") as file:
            writer = Writer(file)
            part = writer.add(bytes(length))
            wrong = Part(part.source, part.offset, said, min(part.stored, said))
            files = {**header.files, "weights": NewFile(said, "0" * 64, tuple(wrong))}
            writer.finish(header.base, header.result, header.sources, files)
        refused(BundleError, "damaged|cannot be", tmp_path / "bomb", bundle)


def test_a_bomb_takes_no_memory(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """100 kB that would become 100 MB; 1 MiB of them is read."""
    import tracemalloc
    import zlib

    (tmp_path / "bomb").write_bytes(MAGIC + zlib.compress(bytes(100 << 20)))
    with open_update(pair[2]) as update, (tmp_path / "bomb").open("rb") as file:
        bomb = Update(tmp_path / "bomb", update.header, file)
        tracemalloc.start()
        piece = bomb.piece(Part(-1, 0, 1 << 20, (tmp_path / "bomb").stat().st_size - len(MAGIC)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert piece == bytes(1 << 20)
    assert peak < 4 << 20


def test_a_disk_that_is_too_small(pair: tuple[Path, Path, Path], tiny_disk: Callable[[int], Path]) -> None:
    bundle = Path(shutil.copytree(pair[0], tiny_disk(8) / "bundle"))
    refused(ResourceError, r"the new bundle needs \d+ MB and \d+ MB are free; make room", pair[2], bundle)


def test_a_disk_that_cannot_be_written(pair: tuple[Path, Path, Path], tiny_disk: Callable[[int], Path]) -> None:
    disk = tiny_disk(80)
    bundle = Path(shutil.copytree(pair[0], disk / "bundle"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused(BundleError, "cannot write: Read-only file system", pair[2], bundle)


NOBODY = """
import fcntl, os, sys  # what is imported later may lie where nobody else may look
from edgellm.errors import EdgeError
from edgellm.update_apply import apply
os.setuid(65534)
try:
    apply(*sys.argv[1:])
except EdgeError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to become somebody else")
def test_somebody_who_may_not_write(pair: tuple[Path, Path, Path]) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        bundle = Path(shutil.copytree(pair[0], Path(place) / "bundle"))
        update = shutil.copy(pair[2], place)
        before = content(bundle)
        command = [sys.executable, "-c", NOBODY, str(update), str(bundle)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "bundle: cannot write: Permission denied; check the path and its permissions" in done.stdout
        assert (content(bundle), beside(bundle)) == (before, ["bundle", "update"])


FULL = """
import resource, sys
from edgellm.errors import EdgeError
from edgellm.update_apply import apply
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
try:
    apply(*sys.argv[1:])
except EdgeError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_write_that_fails_half_way(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    before = content(bundle)
    command = [sys.executable, "-c", FULL, str(pair[2]), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write: File too large" in done.stdout
    assert (content(bundle), beside(bundle)) == (before, ["bundle"])


HOLD = """
import fcntl, os, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(folder, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_two_at_once(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused(BundleError, "bundle: another process is changing it; wait until it is done", pair[2], bundle)
        other.kill()
    apply(pair[2], bundle)


def test_no_converter_and_no_chunker_is_needed(pair: tuple[Path, Path, Path], bundle: Path) -> None:
    program = "import sys; from edgellm.update_apply import apply; apply(*sys.argv[1:]); print(list(sys.modules))"
    command = [sys.executable, "-W", "error", "-c", program, str(pair[2]), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))  # noqa: S307
    assert not {name for name in loaded if name.startswith(("edgellm.converters", "edgellm.runtimes", "edgellm.update_diff"))}
    assert not {"pyfastcdc", "cryptography", "onnxruntime"} & loaded
    assert content(bundle) == content(pair[1])
