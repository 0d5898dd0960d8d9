"""Updates: what is shipped is what the old bundle has not, and applied it gives the new one to the byte."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.bundle import Bundle
from edgellm.errors import BundleError
from edgellm.update_apply import apply
from edgellm.update_diff import AVERAGE, diff
from edgellm.update_file import open_update
from tests.bundles import content, variant

WEIGHTS = random.Random(1).randbytes(1 << 20)
LARGEST = 4 * AVERAGE


def shipped(old: Path, new: Path, folder: Path) -> int:
    return diff(old, new, folder / "update").new


def test_nothing_but_what_changed_is_shipped(tiny_bundle: Path, tmp_path: Path) -> None:
    old = variant(tiny_bundle, tmp_path / "old", {"weights": WEIGHTS})
    changed = WEIGHTS[:500_000] + b"another layer" * 400 + WEIGHTS[505_200:]
    new = variant(tiny_bundle, tmp_path / "new", {"weights": changed})
    manifest = (new / "edgellm.json").stat().st_size
    assert 5200 <= shipped(old, new, tmp_path) <= 5200 + 3 * LARGEST + manifest
    assert diff(old, new, tmp_path / "again").size < 5200 + 3 * LARGEST + manifest


def test_what_is_inserted_moves_the_rest_and_does_not_ship_it(tiny_bundle: Path, tmp_path: Path) -> None:
    old = variant(tiny_bundle, tmp_path / "old", {"weights": WEIGHTS})
    new = variant(tiny_bundle, tmp_path / "new", {"weights": WEIGHTS[:1000] + b"x" + WEIGHTS[1000:]})
    assert shipped(old, new, tmp_path) <= 2 * LARGEST + (new / "edgellm.json").stat().st_size


def test_content_that_only_got_another_name_or_place_is_not_shipped(tiny_bundle: Path, tmp_path: Path) -> None:
    old = variant(tiny_bundle, tmp_path / "old", {"weights": WEIGHTS})
    turned = WEIGHTS[600_000:] + WEIGHTS[:600_000]
    new = variant(tiny_bundle, tmp_path / "new", {"below/renamed": WEIGHTS, "turned": turned})
    assert shipped(old, new, tmp_path) <= 3 * LARGEST + (new / "edgellm.json").stat().st_size


def test_new_content_that_comes_twice_is_shipped_once(tiny_bundle: Path, tmp_path: Path) -> None:
    new = variant(tiny_bundle, tmp_path / "new", {"one": WEIGHTS, "two": WEIGHTS})
    assert shipped(tiny_bundle, new, tmp_path) <= len(WEIGHTS) + (new / "edgellm.json").stat().st_size


def test_a_run_of_chunks_is_one_part(tiny_bundle: Path, tmp_path: Path) -> None:
    old = variant(tiny_bundle, tmp_path / "old", {"weights": WEIGHTS})
    new = variant(tiny_bundle, tmp_path / "new", {"weights": WEIGHTS + b"more"})
    with open_update(diff(old, new, tmp_path / "update").path) as update:
        assert [part.source >= 0 for part in update.header.files["weights"]] == [True, False]


def test_the_same_chunk_over_and_over(tiny_bundle: Path, tmp_path: Path) -> None:
    """Zeros, say: none of them follows itself in the old bundle."""
    old = variant(tiny_bundle, tmp_path / "old", {"weights": bytes(LARGEST)})
    new = variant(tiny_bundle, tmp_path / "new", {"weights": bytes(3 * LARGEST) + WEIGHTS[:100_000]})
    apply(diff(old, new, tmp_path / "update").path, old)
    assert content(old) == content(new)


def test_text_is_deflated_and_weights_are_not(tiny_bundle: Path, tmp_path: Path) -> None:
    text = "\n".join(f"token {number}" for number in range(100_000)).encode()
    made = diff(tiny_bundle, variant(tiny_bundle, tmp_path / "new", {"text": text}), tmp_path / "update")
    assert made.size < made.new / 2
    made = diff(tiny_bundle, variant(tiny_bundle, tmp_path / "weights", {"weights": WEIGHTS}), tmp_path / "other")
    assert abs(made.size - made.new) < 20_000


Edit = tuple[str, float, float]
EDITS = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "replace", "move", "double"]), st.floats(0, 1), st.floats(0, 1)), max_size=6
)


def edited(data: bytes, edits: list[Edit], seed: int) -> bytes:
    chance = random.Random(seed)
    for kind, place, share in edits:
        at = int(place * len(data))
        end = min(len(data), at + int(share**3 * 200_000))
        stretch = data[at:end]
        other = chance.randbytes(len(stretch))
        begin, rest = data[:at], data[end:]
        data = {
            "insert": begin + other + stretch + rest,
            "delete": begin + rest,
            "replace": begin + other + rest,
            "move": stretch + begin + rest,
            "double": begin + stretch + stretch + rest,
        }[kind]
    return data


@settings(deadline=None, max_examples=40)
@given(size=st.integers(0, 400_000), edits=EDITS, other=EDITS, seed=st.integers(0, 1 << 16))
def test_any_edit_comes_out_to_the_byte(tiny_bundle: Path, size: int, edits: list[Edit], other: list[Edit], seed: int) -> None:
    data = WEIGHTS[:size]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        old = variant(tiny_bundle, folder / "old", {"weights": edited(data, other, seed + 1)})
        new = variant(tiny_bundle, folder / "new", {"weights": edited(data, edits, seed)})
        if content(old) == content(new):
            return
        diff(old, new, folder / "update")
        apply(folder / "update", old)
        assert content(old) == content(new)
        assert sorted(entry.name for entry in folder.iterdir()) == ["new", "old", "old.previous", "update"]


def test_two_real_bundles(tiny_source: Path, tmp_path: Path) -> None:
    """Another recipe for one tensor of one layer: the rest of the weights stays at home."""
    from edgellm.conversion import convert

    (tmp_path / "recipe.toml").write_text('[[rule]]\ntensors = "down"\nlayers = 1\nbits = 8\n', encoding="utf-8")
    old = convert(tiny_source, tmp_path / "old", quant="int4", method="rtn").path
    new = convert(tiny_source, tmp_path / "new", quant="int4", method="rtn", recipe=tmp_path / "recipe.toml").path
    made = diff(old, new, tmp_path / "update")
    with open_update(made.path) as update:
        assert [name for name, file in update.header.files.items() if any(part.source < 0 for part in file)] != []
    assert made.size < made.total
    apply(made.path, old)
    assert content(old) == content(new)


def test_the_same_bundle_twice(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    with pytest.raises(BundleError, match="both bundles are the same; give the old one first"):
        diff(tiny_bundle, copy, tmp_path / "update")
    assert not (tmp_path / "update").exists()


def test_a_damaged_bundle_is_not_shipped(tiny_bundle: Path, tmp_path: Path) -> None:
    new = variant(tiny_bundle, tmp_path / "new", {"weights": WEIGHTS})
    (new / "weights").write_bytes(b"?" + WEIGHTS[1:])
    with pytest.raises(BundleError, match="weights: content differs"):
        diff(tiny_bundle, new, tmp_path / "update")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new"]


def test_a_file_that_is_there_is_not_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    new = variant(tiny_bundle, tmp_path / "new", {"weights": WEIGHTS})
    (tmp_path / "update").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="the target exists already"):
        diff(tiny_bundle, new, tmp_path / "update")
    assert (tmp_path / "update").read_text(encoding="utf-8") == "mine"


MEASURE = """
import resource, sys
from pathlib import Path
from edgellm.update_apply import apply
from edgellm.update_diff import diff
from edgellm.bundle import Bundle

def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) >> 10

import threading
high, done = [0], threading.Event()
def watch():
    while not done.wait(0.002):
        high[0] = max(high[0], anonymous())
old, new, update = map(Path, sys.argv[1:])
before = anonymous()
watcher = threading.Thread(target=watch); watcher.start()
diff(old, new, update); apply(update, old)
done.set(); watcher.join()
print(high[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tiny_bundle: Path, tmp_path: Path) -> None:
    """200 MB that all changed: what is held beside mapped pages stays far below it."""
    old = variant(tiny_bundle, tmp_path / "old", {"weights": np.random.default_rng(2).bytes(200 << 20)})
    new = variant(tiny_bundle, tmp_path / "new", {"weights": np.random.default_rng(3).bytes(200 << 20)})
    command = [sys.executable, "-c", MEASURE, str(old), str(new), str(tmp_path / "update")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40
    Bundle.open(old).verify()
