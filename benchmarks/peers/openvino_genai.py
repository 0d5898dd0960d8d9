"""OpenVINO GenAI on models that its own GGUF reader makes, from GGUF files that the gguf package writes.

Speed is that of `LLMPipeline`, which is what its users run, by its own metrics: prefill is the time to the first token, a step
the time between two tokens, greedily sampled and not decoded to text. All its settings are its defaults but two: the number of
threads, and the prefix cache, which would answer the second prefill of a prompt from memory. The load includes its
tokenizer, as llama.cpp's does. `LLMPipeline` shows no logits, so closeness is measured on the same file by the same CPU
plugin with the same settings, through a stateful infer request of the openvino package (which reads no GGUF by itself). That
it is one model is checked in every run: the request has to find the tokens likeliest that the pipeline wrote while it was
timed.

Computation is in what the plugin chooses: on a CPU with bfloat16 in that, with activations rounded to 8 bit in groups of 32
and a KV cache of unsigned 8 bit. Variants:

    q4_0, q8_0  the values rounded as llama.cpp's files of that name are, bit for bit; embedding and head in Q8_0. The reader
                keeps the codes (unsigned, with a zero point of 8 or 128) and the float16 scale of every 32 inputs
    int4-b32    symmetric codes without zero points, which this plugin decodes faster: put into the reader's model of the
                float16 file, in place of its matrices. 4 bit with a scale every 32 inputs in the linears, chosen as in
                Q4_0; 8 bit with a scale a row in embedding and head
    int4-row    the same with a scale a row in the linears too
    source      the source as it is, if the reader knows its types. It makes the minimum of a Q4_1 block an integer zero
                point of 4 bits, so that the model is no longer the source's
"""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.benchmarks import gguf_file
from edgellm.benchmarks.cases import Written
from edgellm.benchmarks.peers.engine import Variant
from edgellm.errors import InferenceError, ResourceError, SourceError
from edgellm.runtimes.session import Logits

NAME = "openvino"
PACKAGES = ("openvino-genai", "openvino")
INSTALL = "pip install openvino-genai, and gguf for its files"
IMPORTS = ("openvino", "openvino_genai", "openvino_tokenizers", "openvino.passes")
VARIANTS = {
    "q4_0": Variant(4, 32, kv="u8"),
    "int4-b32": Variant(4, 32, kv="u8"),
    "int4-row": Variant(4, 0, kv="u8"),
    "source": Variant(4, 32, kv="u8"),
    "q8_0": Variant(8, 32, kv="u8"),
}
GGUF_TYPES = {"q4_0": ("Q4_0", "Q8_0"), "q8_0": ("Q8_0", "Q8_0")}  # of linears, of embedding and head
MODEL = "openvino_model.xml"
EMBEDDINGS = ("token_embd.weight", "output.weight")
CHUNK = 128  # positions whose logits are computed at once


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A folder with the model as OpenVINO saves it, and its tokenizer."""
    if source.suffix.lower() != ".gguf":
        raise SourceError("not a GGUF file", where=source, fix="OpenVINO GenAI is compared on GGUF sources only")
    target = folder / f"openvino-genai-{importlib.metadata.version(PACKAGES[0])}-{variant}"
    if (target / MODEL).is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".openvino-") as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            _write_gguf(variant, source, made / "model.gguf")
            _read_gguf(made / "model.gguf")
            (made / "model.gguf").unlink()
            if variant.startswith("int4"):
                _round_matrices(made / MODEL, VARIANTS[variant].block)
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    except OSError as error:
        raise ResourceError(str(error), where=folder, fix="free some space") from error
    return target


def _write_gguf(variant: str, source: Path, target: Path) -> None:
    if variant == "source":
        if all(tensor.tensor_type.name.startswith(("F", "BF")) for tensor in gguf_file.open_gguf(source).tensors):
            raise SourceError("not quantized", where=source, fix="there is nothing to keep: take another variant")
        target.symlink_to(source.resolve())
        return
    linears, ends = GGUF_TYPES.get(variant, ("F16", "F16"))

    def kind(name: str, shape: tuple[int, ...]) -> str:
        if len(shape) < 2:
            return "F32"
        return ends if name in EMBEDDINGS else linears

    gguf_file.rewrite(source, target, kind=kind, file_type=linears)


def _read_gguf(path: Path) -> None:
    """Let its reader save what it makes beside the file."""
    try:
        importlib.import_module("openvino_genai").LLMPipeline(str(path), "CPU", enable_save_ov_model=True)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"OpenVINO GenAI does not read it: {reason}", where=path.name, fix="take another variant") from error


def _round_matrices(path: Path, block: int) -> None:
    """Replace the float16 matrices of a saved model: 4 bit with a scale a block; 8 bit where there is a row for every token."""
    openvino = importlib.import_module("openvino")
    graph = importlib.import_module("openvino.opset13")
    replace_node = importlib.import_module("openvino.utils").replace_node
    model = openvino.Core().read_model(path)
    tokens = model.output(0).get_partial_shape()[2].get_length()
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f16 or len(node.shape) != 2:
            continue
        rows, columns = node.shape
        bits, width = (8, columns) if rows == tokens else (4, block or columns)
        codes, scales = symmetric(node.data.astype(np.float32).reshape(rows, columns // width, width), bits)
        if bits == 4:
            packed = (codes[..., ::2] & 15 | codes[..., 1::2] << 4).astype(np.uint8)
            tensor = openvino.Tensor(packed, openvino.Shape(codes.shape), openvino.Type.i4)
            weights = openvino.op.Constant(tensor, shared_memory=False)  # a copy: `packed` does not outlive this turn
        else:
            weights = openvino.op.Constant(codes)
        product = graph.multiply(graph.convert(weights, "f16"), openvino.op.Constant(scales))
        replace_node(node, graph.reshape(product, openvino.op.Constant(np.array([rows, columns], np.int64)), False))
    rounded = path.with_name("rounded.xml")
    openvino.save_model(model, rounded, compress_to_fp16=False)
    del model  # it maps the file that is replaced
    for suffix in (".xml", ".bin"):
        rounded.with_suffix(suffix).replace(path.with_suffix(suffix))


def symmetric(values: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes [rows, blocks, block] and float16 scales [rows, blocks, 1]; the largest value of a block is the lowest code, as
    in Q4_0, so that all codes are used."""
    lowest = -(1 << (bits - 1))
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1, keepdims=True), axis=-1)
    scales = (largest / lowest).astype(np.float16)
    steps = np.where(scales == 0, 1, scales).astype(np.float32)
    return np.clip(np.rint(values / steps), lowest, -lowest - 1).astype(np.int8), scales


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> OpenVinoEngine:
    """Load a saved model; the context grows as it fills."""
    genai = importlib.import_module("openvino_genai")
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 2**63 - 1  # as LLMPipeline sets it where no scheduler is given: a prompt in one batch
    scheduler.enable_prefix_caching = False  # it sets True
    try:
        pipeline = genai.LLMPipeline(str(path), "CPU", scheduler_config=scheduler, **_plugin(threads))
    except RuntimeError as error:
        raise InferenceError(f"OpenVINO GenAI does not load it: {error}", where=path, fix="delete it") from error
    return OpenVinoEngine(path / MODEL, threads, pipeline)


def _plugin(threads: int) -> dict[str, Any]:
    return {"INFERENCE_NUM_THREADS": threads}


class OpenVinoEngine:
    """A pipeline for what is timed, and a request of the same model, made when it is first asked for logits."""

    def __init__(self, model: Path, threads: int, pipeline: Any) -> None:
        self._model, self._threads, self._pipeline = model, threads, pipeline
        self._api = importlib.import_module("openvino")
        self._request: Any = None
        self._length = 0

    def time_prefill(self, ids: Sequence[int]) -> float:
        metrics = self._generate(ids, 1).perf_metrics
        return float(metrics.raw_metrics.m_times_to_first_token[0]) / 1e6

    def time_steps(self, ids: Sequence[int], steps: int) -> Written:
        found = self._generate(ids, steps + 1)
        times = [float(each) / 1e6 for each in found.perf_metrics.raw_metrics.m_durations]
        return Written(sum(times), times, [int(token) for token in found.tokens[0]])

    def _generate(self, ids: Sequence[int], count: int) -> Any:
        genai = importlib.import_module("openvino_genai")
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        return self._pipeline.generate(self._api.Tensor(np.asarray(ids, np.int64)[None]), config)

    def reset(self) -> None:
        if self._request is not None:
            self._request.reset_state()
        self._length = 0

    def prefill(self, ids: Sequence[int]) -> Logits:
        last: Logits = self._run(ids)[-1]
        return last

    def step(self, token: int) -> Logits:
        return self.prefill([token])

    def logits(self, ids: Sequence[int]) -> Logits:
        self.reset()
        return np.concatenate([self._run(ids[start : start + CHUNK]).copy() for start in range(0, len(ids), CHUNK)])

    def close(self) -> None:
        del self._pipeline, self._request

    def _run(self, ids: Sequence[int]) -> Logits:
        if self._request is None:
            core = self._api.Core()
            compiled = core.compile_model(core.read_model(self._model), "CPU", _plugin(self._threads))
            self._request = compiled.create_infer_request()
        end = self._length + len(ids)
        result = self._request.infer(
            {
                "input_ids": np.asarray(ids, np.int64)[None],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(self._length, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_outputs=True,
        )
        self._length = end
        logits: Logits = result["logits"][0]
        return logits
