"""Files that are read whole, slice by slice, do not stay in memory whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from edgellm.converters.checkpoints.gguf import GGUFCheckpoint
from edgellm.converters.checkpoints.gguf_file import GGUFFile
from edgellm.converters.checkpoints.safetensors import SafetensorsFile
from edgellm.converters.weights import LazyTensor

ROWS, WIDTH = 24_000, 1024  # 98 MB
SLICE = 4 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what is mapped from /proc")


def mapped_bytes() -> int:
    found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def read_twice(tensor: LazyTensor, values: np.ndarray) -> int:
    """How much more of files is in memory than before, at the end of each reading the most."""
    before, most = mapped_bytes(), 0
    for _ in range(2):
        for start, stop in tensor.slices(SLICE):
            np.testing.assert_array_equal(tensor.rows(start, stop), values[start:stop])
        most = max(most, mapped_bytes() - before)
    return most


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_what_was_read_is_let_go(kind: str, tmp_path: Path) -> None:
    values = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file({"weight": values}, path)
        file = SafetensorsFile(path)
        most = read_twice(file.tensor("weight"), values)
        file.close()
    else:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("weight", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with GGUFCheckpoint(path, [GGUFFile(path)]) as opened:
            most = read_twice(opened.tensor("weight"), values)
    assert most < values.nbytes / 8
