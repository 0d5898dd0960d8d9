"""What imports cost is measured in fresh processes, each row without what the rows above have paid for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgellm.benchmarks import imports
from edgellm.benchmarks.imports import Row

SLOW = "import time\ntime.sleep({})\n"


@pytest.fixture
def slow_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow_one` takes two seconds; `slow_two` needs it, and takes a tenth by itself."""
    (tmp_path / "slow_one.py").write_text(SLOW.format(2), encoding="utf-8")
    (tmp_path / "slow_two.py").write_text(f"import slow_one\n{SLOW.format(0.1)}", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


@pytest.mark.usefixtures("slow_modules")
def test_a_row_pays_for_itself() -> None:
    (both,) = imports.measure(Row("both", ("slow_two",)), 1)
    (second,) = imports.measure(Row("the second", ("slow_two",), before=("slow_one",)), 1)
    assert both >= 2100
    assert 100 <= second < 2000


def test_an_import_that_fails_is_no_figure() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        imports.measure(Row("none", ("edgellm.no_such_module",)), 1)


def test_the_rows_can_be_imported() -> None:
    rows = [row for row in imports.ROWS if imports.is_installed(row)]
    assert {"import edgellm", "numpy", "onnx: onnxruntime", "tflite: ai_edge_litert"} <= {row.what for row in rows}
    assert not imports.is_installed(Row("none", ("no_such_package.module",)))
    for row in rows:
        assert imports.measure(row, 1)[0] > 0, row


def test_the_table() -> None:
    assert imports.table([("numpy", [10.0, 12.0, 31.25])]).splitlines()[-1] == "| numpy | 10.0 | 12.0 | 31.2 |"
