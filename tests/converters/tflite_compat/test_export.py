"""The export for tflite-runtime says there what transformers and numpy say, for every architecture, however tokens are fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.architectures import describe
from edgellm.converters.numpy_ops import NumpyOps, ReferenceModel
from edgellm.converters.recipes import recipe
from edgellm.converters.tflite_compat import export
from edgellm.converters.weights import InMemory, LazyTensor, Weight
from edgellm.errors import SourceError, UsageError
from edgellm.scheme import Recipe, Rule, Scheme
from tests import compat_model, tflite_model
from tests.tiny_models import CASES, MemoryCheckpoint, tiny, torch_logits

IDS = np.random.default_rng(7).integers(3, 131, 40)
OTHER = np.concatenate([IDS[:11], IDS[:5]])
QUANTS = ("fp32", "int8", "int4")
NARROW = [("llama", "head_dim_12")]  # heads of 48 channels together: not what the 4-bit kernel takes
INT4, INT8 = export.grid(4, 0), export.grid(8, 0)
MIXED = Recipe(  # fused products of one grid and of several, a float32 layer, a 4-bit head where it is not the embedding
    "mixed",
    "rtn",
    (
        Rule("layers.1.*", None),
        Rule("layers.*.k.weight", INT8),
        Rule("layers.*.[qv].weight", INT4),
        Rule("layers.*.o.weight", INT8),
        *(Rule(f"layers.*.{name}.weight", INT4) for name in ("gate", "up", "down")),
        Rule("head.weight", INT4),
        Rule("embed.weight", INT8),
    ),
)
TOLERANCE = 1e-4  # of float32 logits of magnitude 1 to 10
# all positions; a chunk, padding and a step; single tokens; again after a rewind: chunks of 16, then single tokens
CALLS: list[tuple[str, Any]] = [
    ("logits", IDS.tolist()),
    ("rewind", 0),
    ("prefill", IDS[:14].tolist()),
    *(("decode", token) for token in IDS[14:].tolist()),
    ("rewind", 11),
    ("prefill", OTHER[11:].tolist()),
]
ALONE = [call for token in IDS.tolist() for call in (("rewind", 0), ("decode", token))]


def source(architecture: str, variant: str) -> tuple[Any, Any, Any]:
    """Model, spec, tensors."""
    model, config, state = tiny(architecture, variant)
    return model, *describe(MemoryCheckpoint(config, state))


class Run(NamedTuple):
    """A case's logits by call, and its recipe."""

    results: dict[int, NDArray[np.float32]]
    recipe: Recipe


@pytest.fixture(scope="module")
def runs(compat_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Run]:
    """Every case with every quantization, in one process of the other environment."""
    folder = tmp_path_factory.mktemp("compat")
    keys = [(*case, quant) for case in CASES for quant in (*QUANTS, "mixed") if not (quant == "int4" and case in NARROW)]
    cases, recipes = [], []
    for number, (architecture, variant, quant) in enumerate(keys):
        _, spec, tensors = source(architecture, variant)
        recipes.append(MIXED if quant == "mixed" else recipe(quant, "rtn", export.BLOCK_SIZE, export.grid))
        calls = CALLS if quant == "fp32" else [*ALONE, ("rewind", 0), ("logits", IDS.tolist())]
        cases.append({**compat_model.write(folder / str(number), spec, tensors, recipes[-1]), "calls": calls})
    results = compat_model.run(compat_python, folder, cases)
    by_case: list[dict[int, NDArray[np.float32]]] = [{} for _ in keys]
    for name, logits in results.items():
        number, call = name.split("/")
        by_case[int(number)][int(call)] = logits
    return {key: Run(*each) for key, *each in zip(keys, by_case, recipes, strict=True)}


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_float_logits_equal_transformers(architecture: str, variant: str, runs: Any) -> None:
    model, _, _ = source(architecture, variant)
    results, _ = runs[architecture, variant, "fp32"]
    wanted = torch_logits(model, IDS)
    close(results[0], wanted)
    close(results[2], wanted[13])
    close(np.stack([results[3 + index] for index in range(len(IDS) - 14)]), wanted[14:])
    close(results[len(CALLS) - 1], torch_logits(model, OTHER)[15])


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "variant"), CASES)
@pytest.mark.parametrize("quant", ["int8", "int4", "mixed"])
def test_quantized_logits_are_those_of_the_same_grid(architecture: str, variant: str, quant: str, runs: Any) -> None:
    """Numpy on the same weights and the same 8-bit activations, and far nearer to that than to the model at float32."""
    _, spec, tensors = source(architecture, variant)
    if quant == "int4" and (architecture, variant) in NARROW:
        with pytest.raises(UsageError, match=r"'layers.0.o.weight' \[64, 48\] cannot have this grid of 4 bits"):
            export.plan(spec, tensors, recipe(quant, "rtn", export.BLOCK_SIZE, export.grid))
        return
    results, chosen = runs[architecture, variant, quant]
    same_grid, plain = (
        ReferenceModel(spec, lambda name, grid=grid: Weight(name, tensors(name), grid.scheme(name)), ops)  # type: ignore[misc]
        for grid, ops in ((chosen, compat_model.CompatOps()), (tflite_model.FP32, NumpyOps()))
    )
    # contexts of one token: no history in which a difference could grow
    near = [np.abs(results[2 * index + 1] - same_grid.logits([token])[0]).max() < 1e-3 for index, token in enumerate(IDS)]
    assert np.mean(near) > 0.5, "they part only where an activation falls between two levels"
    got, alike = results[len(ALONE) + 1], same_grid.logits(IDS)
    assert rms(got - alike) < (0.8 if quant == "int8" else 0.1) * rms(got - plain.logits(IDS))


def rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(values * values)))


@pytest.mark.parametrize(("architecture", "variant"), [("llama", "plain"), ("gemma3", "mixed"), ("qwen2", "plain")])
@pytest.mark.parametrize("quant", QUANTS)
def test_litert_runs_the_same_file(architecture: str, variant: str, quant: str, tmp_path: Path) -> None:
    """Its kernels take activations a little otherwise, so quantized logits are near and not equal."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    _, spec, tensors = source(architecture, variant)
    chosen = recipe(quant, "rtn", export.BLOCK_SIZE, export.grid)
    compat_model.write(tmp_path / "graph", spec, tensors, chosen)
    runner = Interpreter(str(tmp_path / "graph" / export.GRAPH_FILE), num_threads=1).get_signature_runner("logits_16")
    at = np.arange(16, dtype=np.int32)
    inputs: dict[str, NDArray[Any]] = {"tokens": IDS[:16].astype(np.int32), "input_pos": at}
    for name, details in runner.get_input_details().items():
        if name.startswith("mask"):
            window = int(name[5:] or 512)
            seen = (at <= at[:, None]) & (at > at[:, None] - window)
            cache = np.full((16, details["shape"][3] - 16), -1e9, np.float32)
            inputs[name] = np.concatenate([cache, np.where(seen, 0, -1e9).astype(np.float32)], axis=1)[None, None]
        elif name not in inputs:
            inputs[name] = np.zeros(details["shape"], np.float32)
    got = runner(**inputs)["logits"]
    reference = ReferenceModel(spec, lambda name: Weight(name, tensors(name), chosen.scheme(name)), compat_model.CompatOps())
    wanted = reference.logits(IDS[:16])
    if quant == "fp32":
        close(got, wanted)
    else:
        plain = ReferenceModel(spec, lambda name: Weight(name, tensors(name))).logits(IDS[:16])
        assert rms(got - wanted) < (0.25 if quant == "int4" else 0.8) * rms(got - plain)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Scheme(4, 32, scales="positive", narrow_range=True), "no kernels for blocks of 32; leave it out, or give 0"),
        (Scheme(8, 64, scales="positive", narrow_range=True), "no kernels for blocks of 64"),
        (Scheme(4, 0, symmetric=False, scales="positive", narrow_range=True), "cannot have this grid of 4 bits"),
        (Scheme(4, 0, scales="positive"), "cannot have this grid of 4 bits"),
        (Scheme(8, 0, narrow_range=True), "cannot have this grid of 8 bits"),
    ],
)
def test_a_grid_that_the_kernels_compute_wrongly_is_refused(scheme: Scheme, message: str) -> None:
    _, spec, tensors = source("llama", "plain")
    for name in ("layers.*.q.weight", "embed.weight"):
        with pytest.raises(
            UsageError, match=message if name[0] == "l" or scheme.bits == 8 else "an embedding, cannot have 4 bits"
        ):
            export.plan(spec, tensors, Recipe("x", "rtn", (Rule(name, scheme),)))


@pytest.mark.parametrize(("rows", "width"), [(64, 62), (64, 48), (64, 16), (3, 64)])
def test_a_shape_that_the_four_bit_kernel_computes_wrongly_is_refused(rows: int, width: int) -> None:
    _, spec, tensors = source("llama", "plain")

    def odd(name: str) -> LazyTensor:
        return InMemory(np.ones((rows, width), np.float32)) if name.endswith(".o.weight") else tensors(name)

    with pytest.raises(UsageError, match=rf"'layers.0.o.weight' \[{rows}, {width}\] cannot have this grid of 4 bits"):
        export.plan(spec, odd, Recipe("x", "rtn", (Rule("layers.*.o.weight", INT4),)))
    if rows == 64:  # as many as the model has channels
        export.plan(spec, odd, Recipe("x", "rtn", (Rule("layers.*.o.weight", INT8),)))


def test_codes_leave_out_what_the_kernel_corrupts() -> None:
    from edgellm.converters.quantizers import rtn

    weight = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    for bits, lowest in ((4, -7), (8, -127)):
        quantized = rtn.quantize(weight, export.grid(bits, 0))
        assert (quantized.codes.min(), quantized.codes.max()) == (lowest, -lowest)
        assert np.abs(quantized.dequantize() - weight).max() <= 0.51 * quantized.scales.max()


def test_weights_lie_in_the_file_once(tmp_path: Path) -> None:
    """Three signatures, and a tied head that reads the table's bytes: the file is the weights, and tables of a fraction."""
    model, spec, tensors = source("gemma3", "plain")
    assert spec.tied_head
    values = sum(parameter.numel() for parameter in model.parameters())
    for quant, bits in (("fp32", 32), ("int8", 8)):
        chosen = recipe(quant, "rtn", 0, export.grid)
        compat_model.write(tmp_path / quant, spec, tensors, chosen)
        size = (tmp_path / quant / export.GRAPH_FILE).stat().st_size
        assert bits * values // 8 < size < bits * values // 8 + (1 << 20)


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    _, spec, tensors = source("llama", "biases")

    def damaged(name: str) -> LazyTensor:
        values = tensors(name).array()
        if name == "layers.1.down.weight":
            values.flat[0] = np.nan
        return InMemory(values)

    with pytest.raises(SourceError, match="not finite"):
        compat_model.write(tmp_path / "graph", spec, damaged, recipe("int8", "rtn", 0, export.grid))


def test_weights_past_four_gigabytes(compat_python: Path, tmp_path: Path) -> None:
    """The same weights behind a hole of 5 GB, which a file system need not store."""
    from edgellm.converters.tflite.graph import serialize

    model, spec, tensors = source("qwen2", "plain")
    chosen = recipe("int8", "rtn", 0, export.grid)
    case = {**compat_model.write(tmp_path / "near", spec, tensors, chosen), "calls": [("logits", IDS.tolist())]}
    plan = export.plan(spec, tensors, chosen)
    near = (tmp_path / "near" / export.GRAPH_FILE).read_bytes()
    (tmp_path / "far").mkdir()
    with (tmp_path / "far" / export.GRAPH_FILE).open("wb") as file:
        file.write(serialize(plan.subgraphs, 5 << 30))
        file.seek(5 << 30)
        file.write(near[len(near) - plan.layout.size :])
    results = compat_model.run(compat_python, tmp_path, [case, {**case, "folder": str(tmp_path / "far")}])
    np.testing.assert_array_equal(results["1/0"], results["0/0"])
    assert np.abs(results["1/0"] - torch_logits(model, IDS)).max() < 1
