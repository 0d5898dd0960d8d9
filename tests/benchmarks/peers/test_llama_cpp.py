"""llama.cpp as a peer: its files, and how they are run."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import importance, quality
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.benchmarks.peers.lanes import reads
from edgellm.benchmarks.peers.llama_cpp import LlamaCppEngine, _imatrix
from edgellm.benchmarks.peers.measure import open_model, prepare
from edgellm.benchmarks.permuted import permuted
from edgellm.converters import architectures, calibration_text, preparation
from edgellm.converters.checkpoints import open_checkpoint
from tests.peers import consistent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this module's own: what one test made, another one finds."""
    return tmp_path_factory.mktemp("llama.cpp")


KINDS = ("q4_0", "q4_1", "iq4_nl", "q4_k_s", "q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "kind"), [("smollm2", "q4_0", "Q4_0"), ("smollm2", "q8_0", "Q8_0"), ("qwen2.5", "q4_0", "Q4_0")]
)
def test_llama_cpp(
    models: Callable[[str], Path],
    name: str,
    variant: str,
    kind: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llama_cpp")
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    model = open_model(name, models(name), 24)
    (made,), left_out = prepare(model, [EngineId("llama_cpp", variant)], lambda step: None)
    assert left_out == []
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(made.path).tensors}
    ends = {name: kind for name, kind in types.items() if not name.startswith("blk.") and "norm" not in name}
    assert ends == dict.fromkeys(["token_embd.weight", *["output.weight"] * (name == "qwen2.5")], "Q8_0")
    linears = {types[f"blk.{layer}.{part}.weight"] for layer in (0, 7) for part in ("attn_q", "attn_v", "ffn_down", "ffn_up")}
    assert linears == {kind}
    # the file's own weights at float32, by our reader, are what llama.cpp has to compute with
    file_logits = np.load(quality.reference(made.path, model.ids, tmp_path))
    engine = peers.peer("llama_cpp").open_engine(made.path, variant=variant, threads=2, context=64)
    assert quality.compare(file_logits, engine.logits(model.ids)).kl < 0.01
    consistent(engine, model.ids)
    engine.close()
    stamp = made.path.stat().st_mtime_ns
    prepare(model, [made.engine], lambda step: None)
    assert made.path.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_llama_cpp_without_flash_attention_is_the_same_file(
    models: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api: Any = pytest.importorskip("llama_cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    variants = ("q4_0", "q4_0-noflash")
    model = open_model("smollm2", models("smollm2"), 24)
    made, _ = prepare(model, [EngineId("llama_cpp", variant) for variant in variants], lambda step: None)
    assert len({each.path for each in made}) == 1
    module = peers.peer("llama_cpp")
    engines = [module.open_engine(made[0].path, variant=variant, threads=1, context=64) for variant in variants]
    flash, plain = (engine.logits(model.ids) for engine in engines)
    assert quality.compare(flash, plain).kl < 0.02
    assert not np.array_equal(flash, plain)  # the other sums round differently
    settings = api.llama_context_default_params()
    assert {settings.type_k, settings.type_v} == {api.GGML_TYPE_F16}
    assert {module.VARIANTS[variant].kv for variant in variants} == {"f16"}
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def moved(models: Callable[[str], Path]) -> Path:
    """SmolLM2 at float32, permuted: nothing in it lies on a grid."""
    pytest.importorskip("llama_cpp")
    return permuted(models("smollm2"))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows of the calibration text are enough here."""
    monkeypatch.setattr(preparation, "HESSIAN_TOKENS", 1000)


def test_variants_are_named_by_what_is_done() -> None:
    module = peers.peer("llama_cpp")
    named = {f"{kind}{imatrix}{flash}" for kind in KINDS for imatrix in ("", "-imatrix") for flash in ("", "-noflash")}
    named -= {"q8_0-imatrix", "q8_0-imatrix-noflash"}  # its rounding takes no weights
    assert set(module.VARIANTS) == named | {"q4_k_m-default", "q4_k_m-default-imatrix"}
    assert {name for name, kind in module.VARIANTS.items() if kind.usual} == {"q4_0", "q4_0-noflash", "q8_0"}


def test_a_matrix_lives_as_long_as_what_points_to_it() -> None:
    """llama.cpp is given addresses; here of arrays that have to be copied, and that nobody else keeps."""
    api: Any = pytest.importorskip("llama_cpp")
    matrix = {f"blk.{layer}": (layer + np.arange(18000, dtype=np.float32))[::2] for layer in range(40)}
    settings = api.llama_model_quantize_default_params()
    settings.imatrix = _imatrix(api, matrix)
    gc.collect()
    overwritten = [np.full(9000, np.nan, np.float32) for _ in matrix]
    for index, (name, values) in enumerate(matrix.items()):
        entry = settings.imatrix[index]
        assert (entry.name, entry.size) == (name.encode(), 9000)
        np.testing.assert_array_equal(np.ctypeslib.as_array(entry.data, (9000,)), values)
    assert settings.imatrix[len(overwritten)].name is None


@pytest.mark.slow
def test_a_matrix_of_importance_reaches_every_linear(moved: Path, tmp_path: Path) -> None:
    """A file made with it differs in every linear, and stays closer to the source on the text that it comes from."""
    gguf = pytest.importorskip("gguf")
    module = peers.peer("llama_cpp")
    paths = {variant: module.prepare(variant, moved, tmp_path) for variant in ("q4_1", "q4_1-imatrix")}
    plain, weighed = ({each.name: each for each in gguf.GGUFReader(path).tensors} for path in paths.values())
    linears = importance.linears(moved)
    assert len(linears) == 7 * 30
    assert [name for name in linears if np.array_equal(plain[name].data, weighed[name].data)] == []
    others = plain.keys() - linears
    assert all(np.array_equal(plain[name].data, weighed[name].data) for name in others)
    with open_checkpoint(moved) as checkpoint:
        tokenizer = Tokenizer.from_str(checkpoint.text().tokenizer.decode())
    ids = tokenizer.encode(calibration_text.TEXT.read_text(encoding="utf-8")).ids[:200]
    expected = np.load(quality.reference(moved, ids, tmp_path))
    kl = {}
    for variant, path in paths.items():
        engine = module.open_engine(path, variant=variant, threads=1, context=len(ids) + 1)
        kl[variant] = quality.compare(expected, engine.logits(ids)).kl
        engine.close()
    assert kl["q4_1-imatrix"] < 0.5 * kl["q4_1"], kl


@pytest.mark.slow
def test_llama_cpp_starts_from_the_reference_itself(moved: Path, tmp_path: Path) -> None:
    """Its Q8_0 and Q4_0 are what the format's definition makes of the reference's values, and vectors are the reference's."""
    gguf = pytest.importorskip("gguf")
    source = {each.name: each for each in gguf.GGUFReader(moved).tensors}
    assert {each.tensor_type.name for each in source.values()} == {"F32"}
    for variant, kind in (("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)):
        made = gguf.GGUFReader(peers.peer("llama_cpp").prepare(variant, moved, tmp_path)).tensors
        assert {each.name for each in made} == source.keys()
        for each in made:
            if len(each.shape) == 1:
                np.testing.assert_array_equal(each.data, source[each.name].data)
            elif each.name.startswith(("blk.3.", "blk.29.")):
                assert each.tensor_type == kind
                expected = gguf.quants.quantize(source[each.name].data, kind)
                assert (each.data != expected).mean() < 2e-3  # a tie of rounding here and there


@pytest.mark.slow
def test_another_text_is_another_file(moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = peers.peer("llama_cpp")
    found = importance.by_tensor(moved, tmp_path)
    first = module.prepare("q4_0-imatrix", moved, tmp_path)
    assert module.prepare("q4_0-imatrix-noflash", moved, tmp_path) == first
    monkeypatch.setattr(importance, "by_tensor", lambda source, folder: {name: values[::-1] for name, values in found.items()})
    second = module.prepare("q4_0-imatrix", moved, tmp_path)
    assert first != second
    assert first.stat().st_size == second.stat().st_size
    assert first.read_bytes() != second.read_bytes()


class Tensor(ctypes.Structure):
    """The beginning of llama.cpp's ggml_tensor, in the release whose numbers are tested."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


@pytest.mark.slow
def test_importance_is_what_llama_cpp_itself_sees(moved: Path, tmp_path: Path) -> None:
    """Mean squares of what goes into its own products, by its own names, while it reads the calibration text."""
    api: Any = pytest.importorskip("llama_cpp")
    if importlib.metadata.version("llama_cpp_python") != "0.3.36":
        pytest.skip("its structures are those of another release")
    squares: dict[str, tuple[Any, int]] = {}
    linears = importance.linears(moved)

    def watch(pointer: Any, ask: bool, _data: object) -> bool:
        node = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        if not node.src[0] or node.src[0].contents.name.decode() not in linears:
            return False
        if not ask:
            weight, x = node.src[0].contents, node.src[1].contents
            width, rows = x.ne[0], x.ne[1]
            values = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), (rows, width))
            name, total = weight.name.decode(), np.square(values.astype(np.float64)).sum(axis=0)
            before, count = squares.get(name, (0.0, 0))
            squares[name] = before + total, count + rows
        return True

    with open_checkpoint(moved) as checkpoint:
        spec, _ = architectures.describe(checkpoint)
        windows = calibration_text.windows(checkpoint.text().tokenizer, spec, preparation.HESSIAN_TOKENS)
    model = api.llama_model_load_from_file(bytes(moved), api.llama_model_default_params())
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
    settings.cb_eval = api.ggml_backend_sched_eval_callback(watch)
    engine = LlamaCppEngine(api, model, api.llama_init_from_model(model, settings))
    for ids in windows:
        engine.logits(ids.tolist())  # of all positions: else the last layer's products are of the last one only
    engine.close()
    found = importance.by_tensor(moved, tmp_path)
    assert found.keys() == squares.keys() == linears.keys()
    for name, (total, rows) in squares.items():
        assert rows == sum(map(len, windows))
        np.testing.assert_allclose(found[name], total / rows, rtol=0.02)  # llama.cpp's cache is float16


@pytest.mark.slow
def test_what_a_step_reads_and_a_prompt_multiplies(models: Callable[[str], Path]) -> None:
    """By SmolLM2's config: 30 layers, width 576, 9 heads of 64 channels, 3 for keys and values, 1,536 between; a tied head."""
    path = models("smollm2")
    found = reads(path)
    assert found.products == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert found.cache_bytes == 30 * 2 * 3 * 64 * 2
    assert found.weight_bytes is not None
    assert 0.95 * path.stat().st_size < found.weight_bytes < path.stat().st_size  # the rest is the vocabulary
