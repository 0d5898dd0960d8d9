"""The house's own rules: who imports whom, what is shipped, what a file may look like."""

from __future__ import annotations

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "edgellm": "edgellm",
    "benchmarks": "edgellm.benchmarks",
    "converters": "edgellm.converters",
    "runtimes": "edgellm.runtimes",
}
LINKS = ("benchmarks", "converters", "runtimes")
CORE = (
    "edgellm.errors",
    "edgellm.spec",
    "edgellm.scheme",
    "edgellm.card",
    "edgellm.bundle",
    "edgellm.partial",
    "edgellm.own_text",
    "edgellm.paths",
    "edgellm.signature",
    "edgellm.swap",
    "edgellm.update_apply",
    "edgellm.update_file",
    "edgellm._version",
    "edgellm._typed",
)
MAX_LINES = 420

# The device side may import these, the standard library and ONE runtime, inside the runtime's own adapter; and where a
# signature is to be checked, what does that.
DEVICE_PACKAGES = {"numpy", "tokenizers", "jinja2"}
ADAPTER_PACKAGES = {
    "edgellm.runtimes.onnx": {"onnxruntime"},
    "edgellm.runtimes.tflite": {"ai_edge_litert"},
    "edgellm.runtimes.tflite_compat": {"tflite_runtime"},
    "edgellm.signature": {"cryptography"},
}


def sources() -> Iterator[tuple[str, Path]]:
    """(module name, file) of every module that is shipped."""
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder)
            if folder == "edgellm" and inside.parts[0] in LINKS:
                continue
            parts = [*package.split("."), *inside.with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


MODULES = dict(sources())


def imports(file: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions; type-checking blocks aside."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def layer(module: str) -> str:
    """Which part of the house a module belongs to."""
    for name in ("benchmarks", "converters", "runtimes"):
        if module == f"edgellm.{name}" or module.startswith(f"edgellm.{name}."):
            return name
    return "core" if module in CORE else "face"


# What each part may import of ours. The face stands above all of them.
ALLOWED = {
    "core": {"core"},
    "converters": {"core", "converters"},
    "runtimes": {"core", "runtimes"},
    "benchmarks": {"core", "runtimes", "benchmarks"},
    "face": {"core", "converters", "runtimes", "benchmarks", "face"},
}
# A table that compares the engines has to make the models it compares, one of what conversion costs converts, the time of the
# whole chain is that of the face's parts, and LiteRT-LM's own binary runs an export: these stand above the house.
ABOVE_ALL = tuple(f"edgellm.benchmarks.{name}" for name in ("peers", "conversion", "chain", "hosts.binaries.litert_lm"))
SCRIPTS_ABOVE = {name for name in MODULES if name.startswith(ABOVE_ALL)}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - SCRIPTS_ABOVE))
def test_imports_run_one_way(module: str) -> None:
    ours = {name for name in imports(MODULES[module]) if name.split(".")[0] == "edgellm" and name != "edgellm"}
    assert {name for name in ours if layer(name) not in ALLOWED[layer(module)]} == set()


ABOVE = ("conversion", "activations", "fidelity", "evaluation", "litertlm", "cli")
STANDS_ABOVE = {name for name in MODULES if name.startswith(tuple(f"edgellm.{above}" for above in ABOVE))}


@pytest.mark.parametrize("module", sorted(name for name in MODULES.keys() - STANDS_ABOVE if layer(name) == "face"))
def test_only_convert_and_the_command_line_reach_the_converters(module: str) -> None:
    reached = imports(MODULES[module]) & MODULES.keys()
    assert {name for name in reached if layer(name) in ("converters", "benchmarks")} == set()


DEVICE_SIDE = {name for name in MODULES if layer(name) in ("core", "runtimes")} | {"edgellm", "edgellm.llm"} & MODULES.keys()


@pytest.mark.parametrize("module", sorted(DEVICE_SIDE))
def test_device_side_imports_few_packages(module: str) -> None:
    outside = (
        {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names) - {"edgellm", "__future__"}
    )
    assert outside <= DEVICE_PACKAGES | ADAPTER_PACKAGES.get(module, set())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_too_long_or_prints(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    if layer(module) != "benchmarks" and not module.startswith("edgellm.cli"):
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert [call.lineno for call in calls if ast.unparse(call.func) in ("print", "pprint.pprint", "sys.stdout.write")] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_relative_imports_and_no_assert_in_what_is_shipped(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level] == []
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_says_what_it_is(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "a module without a docstring"
        assert "from __future__ import annotations" in text or ast.parse(text).body[1:] == []


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def shipped_packages() -> list[str]:
    return setup_cfg()["options"]["packages"].split()


def test_setup_cfg_lists_the_packages_that_are_there() -> None:
    there = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert shipped_packages() == sorted(there)


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {file.parent for file in MODULES.values()}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", LINKS)
def test_links_resolve(name: str) -> None:
    link = ROOT / "edgellm" / name
    if sys.platform == "win32" and not link.is_symlink():
        pytest.skip("a Windows checkout may hold a text file instead of the link")
    assert link.readlink() == Path("..") / name
    assert (link / "__init__.py").samefile(ROOT / name / "__init__.py")


def test_pyproject_holds_the_build_system_only() -> None:
    import tomllib

    assert list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == ["build-system"]


def test_no_registry_and_no_machine_is_named() -> None:
    """Packages come from whatever index pip is set to use."""
    texts = [*MODULES.values(), ROOT / "Makefile", ROOT / "setup.cfg", *(ROOT / ".ci").glob("*")]
    named = [
        file.name for file in texts if any(host in file.read_text(encoding="utf-8") for host in ("pypi.org", "pythonhosted"))
    ]
    assert named == []


def python(code: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees this checkout, with warnings as errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


LIST_MODULES = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def test_importing_edgellm_loads_almost_nothing() -> None:
    done = python("import os; before = dict(os.environ); import edgellm; assert dict(os.environ) == before; " + LIST_MODULES)
    assert done.returncode == 0, done.stderr
    heavy = {"onnx", "onnxruntime", "torch", "transformers", "tokenizers", "jinja2", "click", "rich", "huggingface_hub"}
    assert heavy & set(json.loads(done.stdout)) == set()


def test_help_imports_no_heavy_package() -> None:
    done = python(
        "import sys; sys.argv = ['edgellm', '--help']\nimport edgellm.cli\ntry: edgellm.cli.main()\nexcept SystemExit: pass\n"
        + LIST_MODULES
    )
    assert done.returncode == 0, done.stderr
    heavy = {"numpy", "onnx", "onnxruntime", "torch", "tokenizers", "jinja2", "rich", "huggingface_hub"}
    assert heavy & set(json.loads(done.stdout.splitlines()[-1])) == set()


def test_a_loaded_model_has_imported_nothing_of_the_workstation(tmp_path: Path) -> None:
    """The device side in a fresh process: load, speak, chat, then look."""
    import edgellm
    from tests import tiny_folder

    edgellm.convert(tiny_folder.write(tmp_path / "source"), tmp_path / "bundle")
    done = python(
        "import edgellm\n"
        f"with edgellm.load({str(tmp_path / 'bundle')!r}) as llm:\n"
        "    llm.generate('Hi', max_tokens=4)\n"
        "    llm.chat([{'role': 'user', 'content': 'Hi'}], max_tokens=4)\n"
        "import json, sys; print(json.dumps(sorted(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert {"torch", "transformers", "onnx", "click", "rich", "huggingface_hub", "safetensors"} & loaded == set()
    assert [name for name in loaded if name.startswith(("edgellm.converters", "edgellm.benchmarks", "edgellm.cli"))] == []
    assert {"onnxruntime", "tokenizers", "jinja2"} <= loaded


BROWSER = ("index.html", "package-lock.json", "package.json", "page.css", "page.js", "worker.js")


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    """Built from the sdist, as an index would: what MANIFEST.in forgets is missed here."""
    checkout = tmp_path / "checkout"
    shutil.copytree(
        ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "demo", "build", "*.egg-info")
    )
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    wanted = {
        f"{name.replace('.', '/')}{'/__init__' if file.name == '__init__.py' else ''}.py" for name, file in MODULES.items()
    }
    assert {name for name in names if ".dist-info/" not in name} == wanted | {
        "edgellm/py.typed",
        "edgellm/benchmarks/facts.sh",
        *(f"edgellm/benchmarks/browser/web/{name}" for name in BROWSER),
        "edgellm/benchmarks/peers/text.txt",
        "edgellm/benchmarks/report/report.html.j2",
        "edgellm/benchmarks/result.schema.json",
        *(f"edgellm/benchmarks/evaluation/{kind}.txt" for kind in ("prose", "code", "dialogue", "facts")),
        "edgellm/converters/calibration.txt",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "Requires-Python: >=3.11" in metadata
    assert "torch" not in [
        line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]


PUBLIC = (
    "Bundle",
    "BundleError",
    "EdgeError",
    "FidelityError",
    "InferenceError",
    "LLM",
    "Output",
    "ResourceError",
    "RuntimeUnavailable",
    "SourceError",
    "Stream",
    "UsageError",
    "__version__",
    "convert",
    "load",
)


def test_the_public_names_are_these() -> None:
    """A new name is a promise: add it here on purpose."""
    import edgellm

    assert tuple(sorted(edgellm.__all__)) == PUBLIC
    assert set(PUBLIC) <= set(dir(edgellm))
    assert all(getattr(edgellm, name) is not None for name in PUBLIC)


def test_public_functions_stay_functions_whatever_was_imported() -> None:
    """Importing a submodule binds its name in the package: one named `convert` would replace the function."""
    import edgellm
    import edgellm.cli.convert
    import edgellm.conversion

    assert {name for name in MODULES if name.startswith("edgellm.") and name.count(".") == 1 and name[8:] in PUBLIC} == set()
    assert edgellm.convert is edgellm.conversion.convert
    assert callable(edgellm.load)
