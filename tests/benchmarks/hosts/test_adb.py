"""Bundles on a device that plays a phone: Debian's adb, adbd's side of the protocol, shell scripts that play the binaries."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.benchmarks import hosts
from edgellm.benchmarks.facts import Core, Facts
from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.hosts import Target, adb
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.result import Case, Moment, Run, Settings, read, write
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import EdgeError, UsageError
from tests import adb_device
from tests.adb_device import PROPERTIES, Phone

needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="there is no adb: apt install adb")
ROOT = Path(__file__).parents[3]
SHORT = Settings(threads=(2,), prompts=(4, 8), depths=(0, 8), decode=3, trials=1)

# Times are of the arguments: a millisecond for each token of a prompt, and for each step one over the threads.
GENAI = r"""#!/bin/sh
while [ $# -gt 0 ]; do case $1 in -l) prompt=$2 ;; -g) steps=$(($2 - 1)) ;; esac; shift; done
threads=$(sed 's/.*"intra_op_num_threads": \([0-9]*\).*/\1/' genai_config.json)
[ -s model.onnx ] && [ -s tokenizer.json ] || exit 9
section() {
    printf '%s:\n\tavg (us):       %s\n\tavg (tokens/s): 1\n\tp50 (us):       1\n' "$1" "$2"
    printf '\tstddev (us):    0\n\tn:              %s * %s token(s)\n' "$3" "$4"
}
echo "Batch size: 1, prompt tokens: $prompt, tokens to generate: $((steps + 1))"
section 'Prompt processing (time to first token)' $((prompt * 1000)) 1 $prompt
section 'Token generation' $((1000 / threads)) $steps 1
section 'Token sampling' 10 1 1
echo 'Peak working set size: 123456789 bytes (117.74 MB)'
"""
LITERT = r"""#!/bin/sh
for each; do case $each in
    --benchmark_prefill_tokens=*) prompt=${each#*=} ;; --benchmark_decode_tokens=*) steps=${each#*=} ;;
    --num_cpu_threads=*) threads=${each#*=} ;; --model_path=*) model=${each#*=} ;;
esac; done
[ "$(head -c 8 $model)" = LITERTLM ] || exit 9
echo "I0000 litert_lm_lib.cc:1: BenchmarkInfo:
    - Init Total: 250.00 ms
    Prefill Turn 1: Processed $prompt tokens in ${prompt}ms duration.
    Decode Turn 1: Processed $steps tokens in $((steps * 1000 / threads))us duration.
I0000 litert_lm_lib.cc:2: Peak system ram usage: 64MB." >&2
"""


@pytest.fixture(scope="module", autouse=True)
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if shutil.which("adb") is None:
        yield
        return
    with adb_device.server(tmp_path_factory.mktemp("adb")) as own, pytest.MonkeyPatch.context() as environment:
        for name, value in own.items():
            environment.setenv(name, value)
        yield


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    with Phone(tmp_path / "phone") as phone:
        yield phone


@pytest.fixture
def genai(tmp_path: Path) -> Path:
    return binary(tmp_path / "model_benchmark", GENAI)


def binary(file: Path, script: str) -> Path:
    file.write_text(script, encoding="utf-8")
    return file


def bench(phone: Phone, binary: Path, bundles: list[Path], settings: Settings = SHORT, **options: Any) -> Run:
    target = Target("pixel", f"adb://{phone.address}?binary={binary}", tuple(options.items()))
    opened = [Bundle.open(path) for path in bundles]
    return hosts.host(target.url).bench(target, opened, (), settings, command="edgellm bench", progress=lambda step: None)


def medians(run: Run, measure: str) -> dict[str, float]:
    return {f"{each.lane}: {each.case.name}": each.median for each in figures(run) if each.measure == measure}


@needs_adb
def test_the_whole_way(phone: Phone, genai: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    run = bench(phone, genai, [tiny_bundle], dataclasses.replace(SHORT, trials=2))
    assert run.host == "pixel"
    assert run.machine.model == "Edge Phone 1"
    assert run.machine.system.startswith("Android 15, ")
    (lane,) = run.lanes
    assert (lane.engine, lane.threads, lane.failed, lane.agreement) == ("onnxruntime-genai", 2, None, None)
    assert "its output was not checked: it shows no logits" in lane.doubts
    assert {(each.round, each.case.kind) for each in run.samples} == {
        (number, kind) for number in range(3) for kind in ("prefill", "first token", "decode")
    }
    ms = medians(run, "time")
    assert ms == {
        f"{lane.id}: first token after 4": pytest.approx(4.01),
        f"{lane.id}: first token after 8": pytest.approx(8.01),
    }
    speeds = medians(run, "speed")
    assert speeds.pop(f"{lane.id}: prefill 4") == pytest.approx(1000)
    assert speeds.pop(f"{lane.id}: prefill 8") == pytest.approx(1000)
    assert set(speeds) == {f"{lane.id}: decode after 0", f"{lane.id}: decode after 8"}
    assert list(speeds.values()) == [pytest.approx(2000)] * 2
    assert set(medians(run, "rss").values()) == {123456789}
    assert any("run on the device as: " in note and "--use_random_tokens" in note for note in run.notes)
    assert len(run.moments) == 1 + 3  # before the first round and after each
    write(run, tmp_path / "run.json")
    assert read(tmp_path / "run.json") == run


@needs_adb
def test_by_the_command_line(phone: Phone, genai: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text(
        f'[hosts.pixel]\nurl = "adb://{phone.address}"\nbinary = "{genai}"\ntimeout = 60\n', encoding="utf-8"
    )
    command = ["bench", str(tiny_bundle), "--host", "pixel", "--prompt", "4", "--depth", "0", "--decode", "3", "--trials", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", *command, "--json", "run.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = read(tmp_path / "run.json")
    assert (run.host, run.machine.model) == ("pixel", "Edge Phone 1")
    assert figures(run)


@needs_adb
def test_the_next_time_nothing_is_sent(phone: Phone, genai: Path, tiny_bundle: Path) -> None:
    bench(phone, genai, [tiny_bundle])
    assert {Path(name).name for name in phone.sent} >= {"model.onnx.part", "model_benchmark.part", "tokenizer.json.part"}
    before = len(phone.sent)
    bench(phone, genai, [tiny_bundle])
    assert phone.sent[before:] == []


@needs_adb
def test_each_number_of_threads_has_its_settings(phone: Phone, genai: Path, tiny_bundle: Path) -> None:
    run = bench(phone, genai, [tiny_bundle], dataclasses.replace(SHORT, threads=(1, 4)))
    speeds = medians(run, "speed")
    assert [speeds[f"{lane.id}: decode after 0"] for lane in run.lanes] == [pytest.approx(1000), pytest.approx(4000)]
    assert [Path(name).name for name in phone.sent].count("model.onnx.part") == 1


@needs_adb
def test_litert_lm_is_given_the_export(phone: Phone, tiny_source: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_lm_builder")
    bundle = convert(tiny_source, tmp_path / "tflite", target="tflite", quant="int8")
    file = binary(tmp_path / "litert_lm_advanced_main", LITERT)
    run = bench(phone, file, [bundle.path])
    (lane,) = run.lanes
    assert (lane.engine, lane.failed) == ("litert-lm", None)
    (there,) = phone.disk.rglob("model.litertlm")
    assert (lane.digest, lane.size) == (hashlib.sha256(there.read_bytes()).hexdigest(), there.stat().st_size)
    assert medians(run, "speed")[f"{lane.id}: prefill 8"] == pytest.approx(1000)
    assert medians(run, "speed")[f"{lane.id}: decode after 8"] == pytest.approx(2000)
    assert medians(run, "time")[f"{lane.id}: load"] == pytest.approx(250)
    assert medians(run, "time")[f"{lane.id}: first token after 4"] == pytest.approx(4.5)


@needs_adb
def test_libraries_beside_the_binary_go_along(phone: Phone, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "libgenai.so").write_text("a library", encoding="utf-8")
    needs = 'grep -q "a library" "$LD_LIBRARY_PATH/libgenai.so" || exit 9\n[ "$ORT_DISABLE_TELEMETRY" = 1 ] || exit 8'
    file = binary(tmp_path / "model_benchmark", GENAI.replace("#!/bin/sh", f"#!/bin/sh\n{needs}"))
    assert bench(phone, file, [tiny_bundle]).lanes[0].failed is None


@needs_adb
def test_it_may_be_kept_on_some_processors(phone: Phone, genai: Path, tiny_bundle: Path) -> None:
    phone.tool("taskset", 'echo "$1" >"$HOME/mask"; shift; exec "$@"')
    run = bench(phone, genai, [tiny_bundle], taskset="f0")
    assert (phone.disk / "mask").read_text(encoding="utf-8") == "f0\n"
    assert any("as: taskset f0 " in note for note in run.notes)


@needs_adb
def test_an_emulator_has_no_speeds(tmp_path: Path, genai: Path, tiny_bundle: Path) -> None:
    with Phone(tmp_path / "phone", properties={**PROPERTIES, "ro.boot.qemu": "1"}) as phone:
        run = bench(phone, genai, [tiny_bundle])
    assert run.machine.emulated == "an Android emulator"
    assert run.samples
    assert figures(run) == ()


@needs_adb
@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("section 'Token gen", "echo lost; exit 3\n'", r"model_benchmark ended with code 3: lost; run it by hand"),
        ("section 'Token gen", "kill -ABRT $$\n'", r"model_benchmark ended by SIGABRT"),
        ("section 'Token gen", "exec sleep 60\n'", r"model_benchmark did not finish within 2 s"),
        ("avg (us)", "mean (us)", r"model_benchmark printed no section 'Prompt processing.*, but: Peak working set"),
        ("1 $prompt", "1 5", r"model_benchmark took 5 tokens and decoded 3, not [48] and 3; ask for other lengths"),
        ("$steps 1", "2 1", r"model_benchmark took [48] tokens and decoded 2, not [48] and 3"),
    ],
)
def test_a_binary_that_fails(phone: Phone, tiny_bundle: Path, tmp_path: Path, old: str, new: str, fault: str) -> None:
    file = binary(tmp_path / "model_benchmark", GENAI.replace(old, new))
    with pytest.raises(HostError, match=rf"^pixel: {fault}") as caught:
        bench(phone, file, [tiny_bundle], timeout="2")
    assert "\n" not in str(caught.value)


@needs_adb
def test_a_lane_that_fails_leaves_the_others_alone(phone: Phone, tiny_bundle: Path, tmp_path: Path) -> None:
    file = binary(
        tmp_path / "model_benchmark",
        GENAI.replace("section 'Token gen", "[ $threads = 4 ] && kill -SEGV $$\nsection 'Token gen"),
    )
    run = bench(phone, file, [tiny_bundle], dataclasses.replace(SHORT, threads=(1, 4)))
    one, four = run.lanes
    assert one.failed is None
    assert four.failed is not None
    assert "model_benchmark ended by SIGSEGV" in four.failed
    assert {each.lane for each in figures(run)} == {one.id}
    assert max(each.round for each in run.samples) == SHORT.trials


@needs_adb
@pytest.mark.parametrize(
    ("faults", "error", "fault"),
    [
        ({"dies_in": "exec "}, HostError, r"^pixel: the device went away"),
        ({"dies_after": 20_000}, HostError, r"^pixel: the device went away"),
        ({"room": 50_000}, HostError, r"^pixel: no space left for "),
        ({"authorized": False}, UsageError, r"has not allowed this computer"),
    ],
)
def test_a_device_that_fails(
    tmp_path: Path, genai: Path, tiny_bundle: Path, faults: dict[str, Any], error: type[EdgeError], fault: str
) -> None:
    with Phone(tmp_path / "phone", **faults) as phone, pytest.raises(error, match=fault) as caught:
        bench(phone, genai, [tiny_bundle])
    if isinstance(caught.value, HostError):
        assert caught.value.facts is not None
        assert caught.value.facts.model == "Edge Phone 1"


@needs_adb
def test_doctor_looks_at_it_without_a_binary(phone: Phone) -> None:
    looked = adb.look(Target("pixel", f"adb://{phone.address}"))
    assert (looked.facts.model, looked.python) == ("Edge Phone 1", None)
    assert looked.facts.android is not None
    assert looked.facts.android["ro.build.version.release"] == "15"


@needs_adb
def test_what_does_not_fit_is_said(phone: Phone, genai: Path, tiny_bundle: Path) -> None:
    room = Bundle.open(tiny_bundle).spec.max_context
    run = bench(phone, genai, [tiny_bundle], dataclasses.replace(SHORT, prompts=(4, room + 1), sustained=1.0))
    assert f"a prompt of {room + 1} tokens is left out: the context is {room}" in run.notes
    assert any(note.startswith("sustained decoding: ") for note in run.notes)


@needs_adb
def test_interrupted_after_a_round_that_counts(phone: Phone, genai: Path, tiny_bundle: Path) -> None:
    said: list[str] = []

    def stop(step: str) -> None:
        said.append(step)
        if sum(each.startswith("round 2") for each in said) == 2:  # a part of it is measured
            raise KeyboardInterrupt

    target = Target("pixel", f"adb://{phone.address}", (("binary", str(genai)),))
    settings = dataclasses.replace(SHORT, trials=2)
    run = adb.bench(target, [Bundle.open(tiny_bundle)], (), settings, command="edgellm bench", progress=stop)
    assert not run.complete
    assert {each.round for each in run.samples} == {0, 1}


@needs_adb
def test_the_wrong_graph(phone: Phone, genai: Path, tiny_source: Path, tmp_path: Path) -> None:
    bundle = convert(tiny_source, tmp_path / "tflite", target="tflite", quant="int8")
    with pytest.raises(UsageError, match=r"has no graph for model_benchmark; convert the model with --target onnx"):
        bench(phone, genai, [bundle.path])


def test_the_wrong_runtime(genai: Path, tiny_bundle: Path) -> None:
    target = Target("pixel", f"adb://?binary={genai}")
    with pytest.raises(UsageError, match=r"pixel: model_benchmark runs no graph for 'tflite'; ask for --runtime onnx"):
        adb.bench(target, [Bundle.open(tiny_bundle)], ["tflite"], SHORT, command="", progress=print)


def target(url: str, **options: str) -> Target:
    return Target("pixel", url, tuple(options.items()))


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda file: target("adb://R58N"), r"pixel: no binary to run; adb://R58N\?binary=FILE"),
        (lambda file: target("adb://R58N", binary="/nowhere/model_benchmark"), r"/nowhere/model_benchmark: no such file"),
        (
            lambda file: target("adb://R58N", binary=file, thread="4"),
            r"pixel: unknown option 'thread'; it may be binary, timeout",
        ),
        (lambda file: target(f"adb://R58N?binary={file}&timeout=soon"), r"pixel: timeout: 'soon' is no number of seconds"),
        (lambda file: target("adb://R58N", binary=file, timeout="0"), r"'0' is no number of seconds"),
        (lambda file: target("adb://R58N", binary=file, timeout="3000000"), r"'3000000' is no number of seconds"),
        (lambda file: target("adb://R58N", binary=file, timeout="9" * 400), r"is no number of seconds"),
        (lambda file: target("adb://R58N", binary=file, taskset="f0; reboot"), r"pixel: taskset: 'f0; reboot' is no mask"),
    ],
)
def test_options_that_make_no_sense(made: Callable[[str], Target], fault: str, genai: Path) -> None:
    with pytest.raises(UsageError, match=fault):
        adb.read(made(str(genai)))


def test_the_url_goes_before_the_file(genai: Path, tmp_path: Path) -> None:
    odd = binary(tmp_path / "model_benchmark 1+1=2", "")
    wish = adb.read(target(f"adb://192.168.1.5:5555?binary={odd}&timeout=5", binary="other", taskset="f0"))
    assert wish == adb.Wish("192.168.1.5:5555", odd, 5.0, "f0")
    assert adb.read(target("adb://", binary=str(genai))).serial == ""


def test_a_moment_of_a_phone_with_two_kinds_of_cores() -> None:
    cores = (Core(0, mhz=1000, max_mhz=1800, governor="walt"), Core(4, mhz=2000, max_mhz=3000, governor="performance"))
    known = Facts(cores=cores, celsius={"skin": 31.5, "cpu-1-0": 58.0}, throttled=("cpufreq is at 2 of 9",))
    made = adb._moment(3.0, known)
    assert (made.at, made.celsius, made.mhz, made.mhz_limit) == (3.0, 58.0, 1500, 2400)
    assert (made.governor, made.throttled) == ("performance/walt", ("cpufreq is at 2 of 9",))
    assert adb._moment(0.0, Facts()) == Moment(0.0)


def test_a_case_is_of_the_answer_that_has_its_length() -> None:
    assert adb._length(Case("decode", depth=0, steps=3)) == 1
    assert adb._length(Case("decode", depth=8, steps=3)) == 8
    assert adb._length(Case("prefill", 4)) == 4
