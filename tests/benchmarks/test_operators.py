from __future__ import annotations

from pathlib import Path

import pytest

import edgellm
from edgellm.benchmarks import operators
from tests import tiny_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operators")
    return edgellm.convert(tiny_folder.write(folder / "source", context=600), folder / "bundle", method="imatrix").path


def test_every_product_has_its_share(bundle: Path) -> None:
    shares = operators.profile(bundle, threads=1)
    assert list(shares) == ["prompt", "step"]
    for phase in shares.values():
        assert sum(share.part for share in phase) == pytest.approx(1)
        assert [share.ms for share in phase] == sorted((share.ms for share in phase), reverse=True)
        # q, k and v; o and down, both of the hidden size; gate and up; the head
        assert {"MatMulNBits to 128", "MatMulNBits to 64", "MatMulNBits to 256", "MatMulNBits to 259"} <= {
            share.operator for share in phase
        }
