"""Free memory on machines laid out in a folder, and the refusal of what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import ResourceError
from edgellm.runtimes import memory, open_runtime

MIB = 1 << 20


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def machine(root: Path, available_mib: int) -> Path:
    write(root, "proc/meminfo", f"MemTotal:  9999999 kB\nMemFree: 1 kB\nMemAvailable:  {available_mib * 1024} kB\n")
    return root


def test_a_system_without_meminfo_is_unknown(tmp_path: Path) -> None:
    assert memory.available_bytes(tmp_path) is None


def test_the_machines_own_figure(tmp_path: Path) -> None:
    assert memory.available_bytes(machine(tmp_path, 300)) == 300 * MIB


def test_a_group_of_version_2_leaves_less(tmp_path: Path) -> None:
    machine(tmp_path, 300)
    write(tmp_path, "proc/self/cgroup", "0::/app\n")
    write(tmp_path, "sys/fs/cgroup/app/memory.max", f"{200 * MIB}\n")
    write(tmp_path, "sys/fs/cgroup/app/memory.current", f"{150 * MIB}\n")
    assert memory.available_bytes(tmp_path) == 50 * MIB
    write(tmp_path, "sys/fs/cgroup/app/memory.stat", f"anon 5\ninactive_file {30 * MIB}\nactive_file 7\n")
    assert memory.available_bytes(tmp_path) == 80 * MIB
    write(tmp_path, "sys/fs/cgroup/app/memory.max", "max\n")
    assert memory.available_bytes(tmp_path) == 300 * MIB
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{90 * MIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", f"{100 * MIB}\n")
    assert memory.available_bytes(tmp_path) == 0, "an outer group counts, and what is over it is nothing"


def test_a_group_of_version_1_leaves_less(tmp_path: Path) -> None:
    machine(tmp_path, 300)
    write(tmp_path, "proc/self/cgroup", "7:memory:/host/path\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{100 * MIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{90 * MIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {5 * MIB}\n")
    assert memory.available_bytes(tmp_path) == 15 * MIB
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory.available_bytes(tmp_path) == 300 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_has_memory() -> None:
    available = memory.available_bytes()
    assert available is not None
    assert MIB < available < 1 << 50


def test_what_a_bundle_needs(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.graphs["onnx"]
    weights = memory.weight_bytes(bundle, graph)
    assert weights == sum((tiny_bundle / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    per_token = memory.kv_bytes_per_token(graph)
    assert per_token == 2 * 2 * 2 * 16 * np.dtype(np.float32).itemsize, "layers, key and value, heads, channels"
    memory.check_fits(bundle, graph, 1000, available=weights + 1000 * per_token)
    with pytest.raises(ResourceError, match=r"KV cache of 1000 tokens.*set max_context to 999 or less"):
        memory.check_fits(bundle, graph, 1000, available=weights + 1000 * per_token - 1)
    with pytest.raises(ResourceError, match="fewer bits"):
        memory.check_fits(bundle, graph, 1000, available=weights - 1)


def test_each_graph_of_two_has_its_own_weights(tiny_source: Path, tmp_path: Path) -> None:
    bundle = convert(tiny_source, tmp_path / "both", target="both")
    for name, files in (("onnx", ("model.onnx", "model.onnx.data")), ("tflite", ("model.tflite",))):
        size = sum((bundle.path / file).stat().st_size for file in files)
        assert memory.weight_bytes(bundle, bundle.graphs[name]) == size


def test_the_files_of_a_graph_in_a_bundle_that_does_not_say() -> None:
    bundle = Bundle.open(Path(__file__).parents[1] / "data" / "bundle-v1")
    graph = bundle.graphs["onnx"]
    assert graph.files == ()
    sizes = [(bundle.path / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert memory.weight_bytes(bundle, graph) == sum(sizes)
    assert bundle.recipe_of(graph) == bundle.recipe


def test_too_little_memory_is_said_before_loading(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """1 MiB: room for the weights and a short context, but not for the 4,096 tokens that the model could take."""
    bundle = Bundle.open(tiny_bundle)
    open_runtime(bundle).close()
    assert not caplog.records
    monkeypatch.setattr(memory, "ROOT", machine(tmp_path, 1))
    open_runtime(bundle).close()
    tokens = memory.room(bundle, bundle.graphs["onnx"], available=MIB)
    assert f"memory for a context of about {tokens} tokens, not for the model's 4096; set max_context" in caplog.text
    caplog.clear()
    open_runtime(bundle, max_context=tokens).close()
    assert not caplog.records, "what was asked for fits"
    with pytest.raises(ResourceError, match="1 MiB of memory is available"):
        open_runtime(bundle, max_context=4096)


def test_too_little_memory_for_a_growing_cache(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_runtime(Bundle.open(tiny_bundle), threads=1).session()
    before = session.prefill([5] * 200).copy()
    monkeypatch.setattr(memory, "ROOT", machine(tmp_path, 1))
    with pytest.raises(ResourceError, match="KV cache of 4096 tokens"):
        session.prefill([6] * 3000)
    assert session.length == 200
    session.rewind(0)
    np.testing.assert_array_equal(session.prefill([5] * 200), before)
