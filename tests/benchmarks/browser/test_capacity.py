"""A .tflite file that is told another size of its cache, in LiteRT itself, which is asked for no resizing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.benchmarks.browser import capacity
from edgellm.bundle import Bundle
from edgellm.runtimes import open_runtime
from edgellm.runtimes.tflite_common import mask, masks


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    """By the type of its cache, which says how keys lie."""
    from edgellm.conversion import convert

    return convert(tiny_source, tmp_path_factory.mktemp("size") / "tiny", target="tflite", quant="int8", kv=request.param)


def greedy(file: Path, slots: int, prompt: list[int], steps: int) -> list[int]:
    """Step by step through `decode`, in a file whose cache has so many slots as it stands."""
    from ai_edge_litert.compiled_model import CompiledModel

    model = CompiledModel.from_file(str(file))
    names = model.get_signature_list()["decode"]
    details = model.get_input_tensor_details("decode")
    windows = masks(names["inputs"])
    inputs = {name: model.create_input_buffer_by_name("decode", name) for name in names["inputs"]}
    for name, buffer in inputs.items():
        shape = [int(size) for size in details[name]["shape"]]
        assert slots in shape or name in ("tokens", "input_pos"), (name, shape)
        buffer.write(np.zeros(shape, np.dtype(details[name]["dtype"])))
    logits: Any = model.create_output_buffer_by_name("decode", "logits")
    outputs = [inputs.get(name, logits) for name in names["outputs"]]
    width = int(np.prod(model.get_output_tensor_details("decode")["logits"]["shape"]))
    found: list[int] = []
    for at in range(len(prompt) + steps):
        inputs["tokens"].write(np.array([(prompt + found)[at]], np.int32))
        inputs["input_pos"].write(np.array([at], np.int32))
        for name, window in windows.items():
            inputs[name].write(mask(np.array([at], np.int32), np.arange(slots, dtype=np.int32), window))
        model.run_by_index(model.get_signature_index("decode"), list(inputs.values()), outputs)
        if at >= len(prompt) - 1:
            found.append(int(np.argmax(logits.read(width, np.float32))))
    return found[: steps + 1]


def test_the_tokens_are_the_same_at_another_size(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.graphs["tflite"]
    prompt, steps = [5 + index % 200 for index in range(150)], 20
    (size,) = capacity.sizes(bundle, graph, [(len(prompt), steps)])
    assert len(prompt) + steps <= size["slots"] <= 384
    assert size["slots"] % 64 == 0
    content = bytearray(bundle.file(graph.file).read_bytes())
    for place in size["places"]:
        assert int.from_bytes(content[place : place + 4], "little") == 64
        content[place : place + 4] = size["slots"].to_bytes(4, "little")
    (tmp_path / "told.tflite").write_bytes(content)

    runtime = open_runtime(bundle, name="tflite", threads=1, max_context=512)
    session = runtime.session()
    wanted = [int(np.argmax(session.prefill(prompt)))]
    for _ in range(steps):
        wanted.append(int(np.argmax(session.decode(wanted[-1]))))
    runtime.close()
    assert greedy(tmp_path / "told.tflite", size["slots"], prompt, steps) == wanted


def test_each_case_has_the_size_that_it_needs(bundle: Bundle) -> None:
    sizes = capacity.sizes(bundle, bundle.graphs["tflite"], [(1, 32), (200, 0), (1024, 32)])
    slots = [size["slots"] for size in sizes]
    assert slots == sorted(slots)
    assert slots[0] <= 128 < slots[1] < slots[2] <= 1280


@pytest.mark.parametrize(
    ("tokens", "chunks", "slots"),
    [
        (1, (32, 128), 1),
        (2, (32, 128), 32),
        (33, (32, 128), 33),
        (100, (32, 128), 128),
        (130, (32, 128), 160),
        (500, (128,), 512),
    ],
)
def test_slots_that_a_prompt_writes_to(tokens: int, chunks: tuple[int, ...], slots: int) -> None:
    """By hand. 129 tokens before the last: 128, and one that goes with 31 of padding: 160 slots."""
    assert capacity.filled(tokens, chunks) == slots
