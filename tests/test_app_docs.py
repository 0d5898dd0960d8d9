"""The files that docs/android.md and docs/ios.md name are those that edgellm writes, and their sources are linked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgellm.bundle import MANIFEST
from edgellm.conversion import convert
from edgellm.litertlm import export_litertlm

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("android.md", "ios.md")
TABLE = re.compile(r"^<!-- files of: (?P<kind>\w+) -->\n\|.*\n\| ---.*\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)


def files(page: str, kind: str) -> dict[str, str]:
    """Of a page's table: by the file's name, whether it is there "always" or otherwise."""
    (rows,) = [found["rows"] for found in TABLE.finditer((DOCS / page).read_text(encoding="utf-8")) if found["kind"] == kind]
    cells = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in rows.splitlines()]
    return {name.strip("`"): there for name, _, there in cells}


@pytest.fixture(scope="module")
def bundles(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names of the files of a bundle as the pages convert it, with and without external weights, and measured."""
    folder = tmp_path_factory.mktemp("docs")
    bundle = convert(tiny_source, folder / "onnx", target="onnx", quant="int4")
    return {"onnx": {*bundle.files, MANIFEST}}


@pytest.mark.parametrize("page", PAGES)
def test_the_bundles_files(page: str, bundles: dict[str, set[str]]) -> None:
    named = files(page, "onnx")
    assert bundles["onnx"] <= named.keys()
    assert {name for name, there in named.items() if there == "always"} <= bundles["onnx"]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_in_every_bundle_is_in_a_real_one(page: str) -> None:
    """By the names in the code that writes them."""
    from edgellm.card import PAGE

    rest = {name for name, there in files(page, "onnx").items() if there != "always"}
    assert rest == {PAGE, "chat_template.jinja"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_real_bundle_has_all_of_them(page: str, models: object, tmp_path: Path) -> None:
    path = models("smollm2")  # type: ignore[operator]
    bundle = convert(path, tmp_path / "bundle", target="onnx", quant="int4", method="rtn")
    assert {*bundle.files, MANIFEST} | {"FIDELITY.md"} == files(page, "onnx").keys()


@pytest.mark.parametrize("page", PAGES)
def test_the_export(page: str, tiny_source: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_lm_builder")
    bundle = convert(tiny_source, tmp_path / "model", target="tflite", quant="int8")
    (name,) = files(page, "litertlm")
    made = export_litertlm(bundle.path, tmp_path / name)
    assert made.name == name


@pytest.mark.parametrize("page", PAGES)
def test_the_code_opens_files_that_are_there(page: str, bundles: dict[str, set[str]]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```(?:kotlin|swift)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    opened = set(re.findall(r'"([\w.]+\.(?:jinja|json|onnx|litertlm))"', code))
    assert opened <= files(page, "onnx").keys() | files(page, "litertlm").keys()


@pytest.mark.parametrize("page", PAGES)
def test_no_class_has_the_name_of_one_of_the_system(page: str) -> None:
    """Foundation and Android both have a Bundle, and code on the same page may mean that one."""
    text = (DOCS / page).read_text(encoding="utf-8")
    classes = re.findall(r"^(?:final )?class (\w+)", text, re.MULTILINE)
    assert len(classes) == 2
    assert not {"Bundle", "Process", "Context", "Data"} & {*classes}


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_may_be_missing_is_looked_for_first(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```(?:kotlin|swift)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for name in (name for name, there in files(page, "onnx").items() if there != "always"):
        for line in (line for line in code.splitlines() if name in line):
            assert "exists" in line, line


@pytest.mark.parametrize("page", PAGES)
def test_each_page_says_that_it_was_not_run(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "nothing on this page was" in text
    for before in re.split(r"^```(?:kotlin|swift)\n", text, flags=re.MULTILINE)[:-1]:
        paragraph = before.rstrip().rpartition("\n\n")[2]
        assert "https://" in paragraph or paragraph.startswith("###"), f"code without a source: {paragraph}"
