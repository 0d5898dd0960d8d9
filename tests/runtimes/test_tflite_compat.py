"""tflite-runtime's sessions in an environment of its own, and what is refused there before it can go wrong silently."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.bundle import Bundle, sha256_file
from edgellm.conversion import convert
from edgellm.errors import RuntimeUnavailable, UsageError
from edgellm.runtimes import open_runtime
from tests.compat_model import ROOT, environment
from tests.runtimes.test_sessions import reference_logits

CURE = "convert the model again with --target tflite-compat"


@pytest.fixture(scope="module")
def bundles(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The tiny model by target and quantization, made once."""
    folder = tmp_path_factory.mktemp("bundles")

    def made(target: str, quant: str) -> Path:
        path = folder / f"{target}-{quant}"
        return path if path.exists() else convert(tiny_source, path, target=target, quant=quant).path

    return made


def python(interpreter: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the other environment's interpreter on this checkout."""
    command = [str(interpreter), *map(str, arguments)]
    return subprocess.run(command, env=environment(**more), cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def refusal(interpreter: Path, bundle: Path) -> str:
    """What a user is told on the terminal, which has to be one line."""
    done = python(interpreter, "-m", "edgellm", "run", bundle, "Hi")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    return done.stderr


@pytest.mark.slow
def test_sessions_do_what_every_runtime_s_sessions_do(
    compat_python: Path, bundles: Any, tiny_source: Path, tmp_path: Path
) -> None:
    """test_sessions.py, run over there: prefill, decode, logits, rewind, the cache's edges, growth, races, refusals."""
    shutil.copytree(bundles("tflite-compat", "fp32"), tmp_path / "tflite_compat")
    np.save(tmp_path / "reference.npy", reference_logits(tiny_source))
    file = ROOT / "tests/runtimes/test_sessions.py"
    done = python(compat_python, "-m", "pytest", "-q", "-k", "tflite_compat", file, EDGELLM_SESSIONS=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed, \d+ deselected in", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 60, done.stdout


SPEAK = """
import json, sys, edgellm
with edgellm.load(sys.argv[1], threads=2, runtime=sys.argv[2] if len(sys.argv) > 2 else None) as llm:
    ids = llm.generate("Once upon a time", max_tokens=40, temperature=0).ids
print(json.dumps([ids, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_text_through_it_is_what_onnxruntime_says(compat_python: Path, bundles: Any, tiny_bundle: Path) -> None:
    with edgellm.load(tiny_bundle) as llm:
        wanted = llm.generate("Once upon a time", max_tokens=40, temperature=0).ids
    for spelling in ("tflite-compat", "tflite_compat"):
        done = python(compat_python, "-c", SPEAK, bundles("tflite-compat", "fp32"), spelling)
        assert (done.returncode, done.stderr) == (0, "")
        ids, modules = json.loads(done.stdout)
        assert tuple(ids) == tuple(wanted)
    assert {"tflite_runtime", "numpy", "tokenizers"} <= set(modules)
    assert {"ai_edge_litert", "onnxruntime", "onnx", "flatbuffers", "torch"} & set(modules) == set()


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_it_speaks_at_every_quantization(compat_python: Path, bundles: Any, quant: str) -> None:
    done = python(compat_python, "-c", SPEAK, bundles("tflite-compat", quant))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)[0]) == 40


def test_a_process_without_stderr(compat_python: Path, bundles: Any) -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" 2>&-', compat_python, SPEAK, bundles("tflite-compat", "fp32")]
    done = subprocess.run(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)[0]) == 40


def test_without_the_package(bundles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    with pytest.raises(
        RuntimeUnavailable, match=r"not installed; (pip install 'edgellm\[tflite-runtime\]' 'numpy<2'|use Python)"
    ):
        open_runtime(Bundle.open(bundles("tflite-compat", "fp32")))


@pytest.mark.skipif(np.__version__.startswith("1."), reason="numpy 2 is what is refused")
def test_numpy_2_is_refused_before_the_package_is_touched(compat_python: Path, bundles: Any) -> None:
    """This environment's numpy beside the package of the other one."""
    find = "import tflite_runtime, pathlib; print(pathlib.Path(tflite_runtime.__path__[0]).parent)"
    packages = python(compat_python, "-c", find).stdout.strip()
    code = f"import sys; sys.path.append({packages!r}); from edgellm.cli import main; main()"
    done = python(Path(sys.executable), "-c", code, "run", bundles("tflite-compat", "fp32"), "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    cure = "pip install 'edgellm[tflite-runtime]' 'numpy<2'"
    assert done.stderr == f"error: tflite-runtime does not work with numpy {np.__version__}; {cure}\n"


def test_a_bundle_for_litert_alone_says_what_to_do(compat_python: Path, bundles: Any) -> None:
    told = refusal(compat_python, bundles("tflite", "int8"))
    assert "pip install edgellm[tflite], or " in told
    assert CURE in told


def test_the_runtime_is_asked_for_by_name_and_the_graph_is_not_there(bundles: Any) -> None:
    for name in ("tflite-compat", "tflite_compat"):
        with pytest.raises(UsageError, match=r"no graph for the runtime 'tflite.compat'; it has: tflite; .* --target"):
            open_runtime(Bundle.open(bundles("tflite", "fp32")), name=name)


def renamed(bundle: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a bundle with another manifest."""
    copy = Path(shutil.copytree(bundle, folder / "copy"))
    manifest = json.loads((copy / "edgellm.json").read_text(encoding="utf-8"))
    change(manifest)
    (copy / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("quant", "message"),
    [("int8", "would take weights of this graph for zeros"), ("int4", "for zeros"), ("fp32", "refuses the graph")],
)
def test_a_graph_of_the_other_export_is_refused(
    compat_python: Path, bundles: Any, tmp_path: Path, quant: str, message: str
) -> None:
    """Even where the manifest calls it ours."""
    copy = renamed(
        bundles("tflite", quant),
        tmp_path,
        lambda manifest: manifest.update(graphs={"tflite_compat": manifest["graphs"]["tflite"]}),
    )
    told = refusal(compat_python, copy)
    assert message in told
    assert told.endswith(f"; {CURE}\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["spec"].update(vocab_size=260),
        lambda manifest: manifest["graphs"]["tflite_compat"]["kv"][0].update(kv_heads=4),
        lambda manifest: manifest["graphs"]["tflite_compat"]["kv"][0].update(head_dim=32),
        lambda manifest: manifest["graphs"]["tflite_compat"]["kv"][0].update(present_key="nowhere.{layer}"),
        lambda manifest: manifest["graphs"]["tflite_compat"]["kv"][0].update(capacity="model"),
        lambda manifest: manifest["graphs"]["tflite_compat"]["kv"][0].update(dtype="int8"),
    ],
)
def test_a_manifest_that_says_otherwise(
    compat_python: Path, bundles: Any, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    assert "not as the manifest says" in refusal(compat_python, renamed(bundles("tflite-compat", "fp32"), tmp_path, change))


def test_a_damaged_graph_is_refused_before_native_code_reads_it(compat_python: Path, bundles: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles("tflite-compat", "fp32"), tmp_path / "copy"))
    file, manifest = copy / "model_compat.tflite", json.loads((copy / "edgellm.json").read_text(encoding="utf-8"))
    file.write_bytes(b"\xff\xff\xff\x7f" + file.read_bytes()[4:])
    manifest["files"][file.name]["sha256"] = sha256_file(file)
    (copy / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "not a sound TFLite model" in refusal(compat_python, copy)


def test_the_other_commands_know_it(compat_python: Path, bundles: Any) -> None:
    bundle = bundles("tflite-compat", "int8")
    last = python(compat_python, "-m", "edgellm", "bench", bundle, "--trials", "1", "--threads", "1").stdout.splitlines()[-1]
    assert "tflite-runtime 2.14.0" in last
    report = python(compat_python, "-m", "edgellm", "doctor").stdout
    assert "\ntflite-runtime   2.14.0, runs tflite-compat bundles\n" in report
    assert "numpy<2" not in report


HELD = """
import json, sys, numpy as np
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
runtime = open_runtime(Bundle.open(sys.argv[1]), threads=1)
ids = np.random.default_rng(3).integers(3, 259, 300).tolist()
one, other = runtime.session(), runtime.session()

def fresh(tokens):
    session = runtime.session()
    return session.logits(tokens)[-1]

def same(logits, tokens):
    np.testing.assert_allclose(logits, fresh(tokens), atol=1e-4)

one.prefill(ids[:40])
same(one.decode(ids[40]), ids[:41])
one.rewind(10)                                  # the interpreter holds 40 rows, 30 of which are void
one.prefill(ids[100:160])                       # as long as before, and longer, with no step of its own before the last
same(one.decode(ids[160]), ids[:10] + ids[100:161])
other.prefill(ids[200:220])                     # takes the interpreter's inputs
same(one.decode(ids[161]), ids[:10] + ids[100:162])
same(other.decode(ids[220]), ids[200:221])
same(one.prefill(ids[162:300] + ids[:130]), ids[:10] + ids[100:300] + ids[:130])   # grows
same(other.decode(ids[221]), ids[200:222])
last = runtime.session()
last.prefill(ids[:20])
for cache in last._kv.values():
    cache[:, :, :19] = np.nan                   # a step hands over what is new, and no more
assert np.isfinite(last.decode(ids[20])).all()
broken = runtime.session()
broken.prefill(ids[:20])
broken._kv = {name: cache.astype(np.float64) for name, cache in broken._kv.items()}
try:
    broken.prefill(ids[:40])
except Exception as error:
    kept = error                                # and what it holds on to does not keep others from running
    print(type(kept).__name__, str(kept).count(chr(10)), broken.length)
one.close()
same(other.decode(ids[222]), ids[200:223])
runtime.interpreter.resize_tensor_input(runtime.decode.inputs["tokens"].index, [7])
try:
    other.decode(5)
except Exception as error:
    print(type(error).__name__, str(error).count(chr(10)))
    runtime.interpreter.resize_tensor_input(runtime.decode.inputs["tokens"].index, [1])
    runtime.interpreter.allocate_tensors()
    print(other.length)
"""


def test_a_step_knows_which_rows_it_holds(compat_python: Path, bundles: Any) -> None:
    """Sessions that rewind, take turns and grow; and a failed run is one line and leaves the session as it was."""
    done = python(compat_python, "-c", HELD, bundles("tflite-compat", "fp32"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["InferenceError 0 20", "InferenceError 0", "23"]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int8"])
def test_a_real_model_knows_what_follows(models: Any, compat_python: Path, tmp_path: Path, quant: str) -> None:
    """SmolLM2 there, against itself at float32 in onnxruntime."""
    text = "The history of the printing press begins in China, where woodblock printing on paper was common by the year 900."
    exact = convert(models("smollm2"), tmp_path / "exact", quant="fp32")
    with edgellm.load(exact.path) as llm:
        ids = llm.tokenizer.encode(text)
        wanted = llm.session().logits(ids)
    bundle = convert(models("smollm2"), tmp_path / "out", target="tflite-compat", quant=quant)
    code = (
        "import sys, json, numpy, edgellm\n"
        "with edgellm.load(sys.argv[1]) as llm:\n"
        "    numpy.save(sys.argv[2], llm.session().logits(json.loads(sys.argv[3])))\n"
        "    print(llm.generate('Monday, Tuesday, Wednesday, Thursday,', max_tokens=12, temperature=0).text)\n"
    )
    done = python(compat_python, "-c", code, bundle.path, tmp_path / "logits.npy", json.dumps(ids))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Friday" in done.stdout
    assert "Saturday" in done.stdout
    got = np.load(tmp_path / "logits.npy")
    assert np.mean(got.argmax(-1) == wanted.argmax(-1)) > 0.85
    assert divergence(wanted, got) < 0.05


def divergence(wanted: Any, got: Any) -> float:
    """Mean KL divergence of `got` from `wanted`, in nats, over rows of logits."""
    first, second = (rows - rows.max(-1, keepdims=True) for rows in (wanted.astype(np.float64), got.astype(np.float64)))
    first, second = (rows - np.log(np.exp(rows).sum(-1, keepdims=True)) for rows in (first, second))
    return float((np.exp(first) * (first - second)).sum(-1).mean())
