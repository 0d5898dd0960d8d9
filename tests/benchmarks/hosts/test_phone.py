"""A bundle in a real browser, from the URL to the run: wasm, WebGPU on a software adapter, tabs that vanish.

Wanted: chromium-headless-shell (Debian's package of that name) or chromium, playwright, and npm, which brings the browser's
libraries. Where one of them is missing these tests skip.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.benchmarks import run as native
from edgellm.benchmarks.browser import device
from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.hosts import Target, host
from edgellm.benchmarks.result import Run, Settings, read, write
from edgellm.bundle import Bundle
from edgellm.errors import InferenceError, ResourceError, UsageError
from edgellm.runtimes import open_runtime
from tests.benchmarks.hosts.phones import SMALL, URL, Benching, begun

SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")


def tokens_here(bundle: Bundle, runtime: str, depth: int, steps: int) -> tuple[int, ...]:
    """What this machine's runtime finds, step by step."""
    ids = [int(each) for each in np.resize(np.asarray(native.text_ids(bundle)), max(1, depth))]
    opened = open_runtime(bundle, name=runtime, threads=1, max_context=min(512, bundle.spec.max_context))
    try:
        session = opened.session()
        found = [int(np.argmax(session.prefill(ids)))]
        for _ in range(steps):
            found.append(int(np.argmax(session.decode(found[-1]))))
        return tuple(found)
    finally:
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "quant"), [("onnx", "fp32"), ("onnx", "int4"), ("tflite", "int4")])
def test_wasm_says_what_this_machine_says(
    launch: Callable[..., Any],
    both: Bundle,
    tiny_bundle: Path,
    runtime: str,
    quant: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    bundle = both if quant == "int4" else Bundle.open(tiny_bundle)
    benching = Benching(bundle, (runtime,), SMALL, "phone://127.0.0.1:0")
    page = launch().new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    url = benching.url(capsys)
    run = benching.run(begun(page, url))

    (lane,) = [each for each in run.lanes if "on wasm" in each.device]
    assert lane.failed is None
    library = {"onnx": "onnxruntime-web", "tflite": "litert.js"}[runtime]
    assert (lane.engine, lane.runtime, lane.threads) == (library, "browser", 2)
    assert (lane.device, lane.id) == (f"{library} on wasm, 2 threads", f"{bundle.path.name} {library} wasm 2")
    assert lane.agreement == 1.0
    if (runtime, quant) != (
        "onnx",
        "int4",
    ):  # kernels round activations to 8 bits their own way
        assert [note for note in run.notes if "are not those" in note] == []
    assert run.host == "a kitchen phone"
    assert run.machine.python.startswith("none: HeadlessChrome") or run.machine.python.startswith("none: Chrome")
    assert run.complete
    for depth in SMALL.depths:
        found = {each.tokens for each in run.samples if (each.case.kind, each.case.depth) == ("decode", depth)}
        assert found == {tokens_here(bundle, runtime, depth, SMALL.decode)}
    kinds = {(each.case.name, each.round) for each in run.samples if each.lane == lane.id}
    cases = (
        *("load", "prefill 24", "prefill 200", "decode after 0", "decode after 90"),
        *(f"first token after {prompt}{state}" for prompt in (24, 200) for state in ("", ", cached")),
    )
    assert kinds == {(name, number) for name in cases for number in (0, 1)}
    assert {each.measure for each in figures(run) if each.lane == lane.id} >= {"speed", "time", "p50", "import"}
    assert {each.split("/")[2] for each in asked} == {url.split("/")[2]}  # from nowhere else
    assert [note for note in run.notes if "could not keep" in note or "relaxed SIMD" in note] == []
    no_gpu = ("No available adapters", "Failed to create default WebGPU device")
    assert [each for each in said if not any(words in each for words in no_gpu)] == []
    write(run, tmp_path / "run.json")
    assert dataclasses.replace(read(tmp_path / "run.json"), lanes=run.lanes) == run


def on_software_gpu(bundle: Bundle, launch: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> Run:
    settings = Settings(threads=(1,), prompts=(16,), depths=(0,), decode=4, trials=1)
    benching = Benching(bundle, ("onnx",), settings, "phone://127.0.0.1:0")
    page = launch(*SOFTWARE_GPU).new_page()
    page.goto(benching.url(capsys))
    if not page.evaluate("async () => !!(navigator.gpu && await navigator.gpu.requestAdapter())"):
        pytest.skip("this Chromium offers no software adapter for WebGPU")
    return benching.run(begun(page, page.url))


@pytest.mark.slow
def test_webgpu_on_a_software_adapter_is_right_and_has_no_speeds(
    launch: Callable[..., Any], tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a context of 30: longer prompts take a kernel that is wrong there, see below."""
    from edgellm.conversion import convert

    bundle = convert(tiny_source, tmp_path / "short", quant="int4", max_context=30)
    run = on_software_gpu(bundle, launch, capsys)
    (lane,) = [each for each in run.lanes if " on WebGPU: " in each.device]
    assert (lane.failed, lane.agreement) == (None, 1.0)
    assert any("software plays the GPU" in doubt for doubt in lane.doubts)
    assert [each for each in run.samples if each.lane == lane.id]
    assert [each for each in figures(run) if each.lane == lane.id] == []
    assert [each for each in figures(run) if each.lane != lane.id]


@pytest.mark.slow
def test_a_prompt_that_a_kernel_gets_wrong_is_a_failed_lane(
    launch: Callable[..., Any], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime-web 1.30.0 takes another kernel for attention from 32 tokens on, which is wrong on SwiftShader.

    Most of the steps behind such a prompt are right, so that they alone would not tell. Where it is mended, so is the lane.
    """
    run = on_software_gpu(Bundle.open(tiny_bundle), launch, capsys)
    for lane in run.lanes:
        wrong = lane.agreement != 1.0
        assert (lane.failed is not None) == wrong, lane
        if wrong:
            assert " on WebGPU: " in lane.device
            assert re.search(r"its output is wrong: \d+% of the tokens that onnx finds here are likely to it", str(lane.failed))
            assert not [each for each in run.samples if each.lane == lane.id]


@pytest.mark.slow
def test_over_https_and_a_second_run_loads_nothing_anew(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the LAN's address. The certificate is its own: the browser is told to take it, as by its user."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            pytest.skip(f"this machine has no network: {error}")
        address = probe.getsockname()[0]
    context = launch().new_context(ignore_https_errors=True)
    settings = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=2, trials=1)
    ports, fetched = [0], []
    for _ in range(2):
        benching = Benching(both, ("onnx", "tflite"), settings, f"phone://{address}:{ports[-1]}")
        page = context.new_page()
        files: list[str] = []
        context.on("request", lambda request, files=files: files.append(request.url))
        url = benching.url(capsys)
        assert url.startswith(f"https://{address}:")
        run = benching.run(begun(page, url))
        assert [lane.failed for lane in run.lanes] == [None] * len(run.lanes)
        assert page.evaluate("crossOriginIsolated && isSecureContext")
        ports.append(int(url.split(":")[2].split("/")[0]))
        fetched.append([each for each in files if "/file/" in each or each.endswith(".wasm")])
        page.close()
    assert fetched[0]
    assert fetched[1] == []  # of the graph and of the library


@pytest.mark.slow
def test_without_relaxed_simd_litert_runs_its_other_build_on_one_thread(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in Safari: the page finds that wasm has none."""
    benching = Benching(both, ("tflite",), SMALL, "phone://127.0.0.1:0")
    page = launch().new_page()
    page.add_init_script("WebAssembly.validate = () => false")
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    run = benching.run(begun(page, benching.url(capsys)))
    (lane,) = run.lanes
    assert (lane.failed, lane.agreement, lane.threads) == (None, 1.0, 1)
    scripts = {each.rpartition("/")[2] for each in asked if "litert_wasm" in each}
    assert scripts == {"litert_wasm_compat_internal.js"}
    assert [note for note in run.notes if "relaxed SIMD" in note]


@pytest.mark.slow
def test_each_worker_warms_up_by_the_longest_way(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Untimed, and before anything that is timed, as natively."""
    benching = Benching(both, ("onnx",), dataclasses.replace(SMALL, threads=(1,)), "phone://127.0.0.1:0")
    benching.run(begun(launch().new_page(), benching.url(capsys)))
    for number in ("warm-up", "round 1 of 1"):
        steps = [each.partition(" wasm 1: ")[2] for each in benching.steps if each.startswith(f"{number}, ")]
        assert steps[:3] == ["load", "warm-up, decode after 90", "warm-up, first token 200, cached"]
        assert not [each for each in steps[3:] if each.startswith("warm-up")]
        assert len(steps) == 3 + 8


@pytest.mark.slow
def test_what_the_browser_cannot_hold_is_said_before_it_is_sent(
    launch: Callable[..., Any], both: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle of a hundred kilobytes, and a phone that holds fifty."""
    monkeypatch.setitem(device.ROOM, "Android", 50_000)
    agent = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Mobile Safari/537.36"
    context = launch().new_context(user_agent=agent)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    benching = Benching(both, ("onnx",), SMALL, "phone://127.0.0.1:0")
    run = benching.run(begun(context.new_page(), benching.url(capsys)))
    assert all("a browser on Android holds about 0 MiB" in str(lane.failed) for lane in run.lanes)
    assert run.samples == ()
    assert [each for each in asked if "/file/" in each] == []


def test_what_no_browser_holds_needs_no_browser(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LARGEST", 1000)
    with pytest.raises(ResourceError, match="no browser has a buffer of more than 2 GiB; use a smaller model"):
        host("phone://").bench(
            Target("phone", "phone://127.0.0.1:0"), [both], ("onnx",), SMALL, command="", progress=lambda step: None
        )


def test_nobody_comes(both: Bundle, brought: None, capsys: pytest.CaptureFixture[str]) -> None:
    target = Target("phone", "phone://127.0.0.1:0", (("wait", "0.2"),))
    with pytest.raises(InferenceError, match="nobody opened the page"):
        host("phone://").bench(target, [both], ("onnx",), SMALL, command="", progress=lambda step: None)
    said = capsys.readouterr().err
    assert "█" in said or "▄" in said  # a QR code
    assert URL.search(said)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("phone://kitchen", ()),
        ("phone://127.0.0.1:99999", ()),
        ("phone://127.0.0.1/path", ()),
        ("phone://me@127.0.0.1", ()),
        ("phone://127.0.0.1", (("wait", "long"),)),
        ("phone://127.0.0.1", (("wait", "-1"),)),
        ("phone://127.0.0.1", (("wait", "1e10"),)),
        ("phone://127.0.0.1", (("silence", "604801"),)),
        ("phone://0.0.0.0", ()),
        ("phone://[::]", ()),
        ("phone://224.0.0.1", ()),
        ("phone://127.0.0.1", (("silence", "nan"),)),
        ("phone://127.0.0.1", (("colour", "red"),)),
    ],
)
def test_what_makes_no_sense(both: Bundle, url: str, options: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(UsageError, match="phone"):
        host("phone://").bench(Target("phone", url, options), [both], (), SMALL, command="", progress=lambda step: None)


def test_a_port_that_is_taken_is_said_before_the_page_is_opened(
    both: Bundle, brought: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        target = Target("phone", f"phone://127.0.0.1:{port}", (("wait", "0.2"),))
        with pytest.raises(InferenceError, match="nobody opened the page"):
            host("phone://").bench(target, [both], ("onnx",), SMALL, command="", progress=lambda step: None)
    said = capsys.readouterr().err
    assert f"port {port} is taken: the browser keeps nothing for the next run" in said
    assert f"127.0.0.1:{port}/" not in said


def test_a_graph_that_no_browser_runs(both: Bundle) -> None:
    with pytest.raises(UsageError, match="no browser runs a graph for the runtime 'tflite_compat'"):
        host("phone://").bench(
            Target("p", "phone://127.0.0.1:0"), [both], ("tflite_compat",), SMALL, command="", progress=lambda step: None
        )
