"""The machine's limits against probes that are compiled here, and what they are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated
from ai_edge_litert.interpreter import Interpreter

from edgellm.benchmarks import limit, products
from edgellm.benchmarks.machine import machine
from tests.sysfs_tree import lay

MIB = 1 << 20
CACHE = "sys/devices/system/cpu/cpu"

# Both print the most that one of their attempts reached, with as many threads as they are told to start.
FRAME = """
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
typedef struct { const uint64_t *from; size_t count; volatile uint64_t sum; } Part;
%s
int main(int argc, char **argv) {
    int threads = atoi(argv[1]), attempts = atoi(argv[2]);
    size_t count = (size_t)256 << 17;
    uint64_t *data = aligned_alloc(1 << 21, count * 8);
    madvise(data, count * 8, MADV_HUGEPAGE);
    memset(data, 1, count * 8);
    double best = 0;
    for (int attempt = 0; attempt < attempts; attempt++) {
        pthread_t ids[64];
        Part parts[64];
        double start = now();
        for (int i = 0; i < threads; i++) {
            parts[i].from = data + count / threads * i, parts[i].count = count / threads;
            pthread_create(ids + i, 0, work, parts + i);
        }
        for (int i = 0; i < threads; i++) pthread_join(ids[i], 0);
        double rate = amount(threads, count) / (now() - start);
        best = rate > best ? rate : best;
    }
    printf("%%.0f\\n", best);
}
"""
READ = """
static double amount(int threads, size_t count) { return count * 8.0; }
static void *work(void *argument) {
    Part *part = argument;
    const uint64_t *p = part->from;
    uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (size_t i = 0; i < part->count; i += 8) {
        a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3], e += p[i + 4], f += p[i + 5], g += p[i + 6], h += p[i + 7];
    }
    part->sum = a + b + c + d + e + f + g + h;
    return 0;
}
"""
# The empty statement keeps the compiler from seeing that every turn does the same.
MULTIPLY = """
#define TURNS 2000000
#if defined(__AVX512VNNI__)
typedef __m512i V;
#define LANES 64
#define STEP(s) s = _mm512_dpbusd_epi32(s, x, y);
#else
typedef __m256i V;
#define LANES 32
#define STEP(s) s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), one));
#endif
static double amount(int threads, size_t count) { return 12.0 * LANES * TURNS * threads; }
static void *work(void *argument) {
    V x, y, one, s[12];
    memset(&x, 3, sizeof x), memset(&y, 2, sizeof y), memset(&one, 1, sizeof one), memset(s, 0, sizeof s);
    V a = s[0], b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
    for (long turn = 0; turn < TURNS; turn++) {
        __asm__ volatile("" : "+x"(x), "+x"(y), "+x"(one));
        STEP(a) STEP(b) STEP(c) STEP(d) STEP(e) STEP(f) STEP(g) STEP(h) STEP(i) STEP(j) STEP(k) STEP(l)
    }
    s[0] = a, s[1] = b, s[2] = c, s[3] = d, s[4] = e, s[5] = f, s[6] = g, s[7] = h, s[8] = i, s[9] = j, s[10] = k, s[11] = l;
    for (size_t at = 0; at < sizeof s / 8; at++) ((Part *)argument)->sum += ((uint64_t *)s)[at];
    return 0;
}
"""


def compiled(folder: Path, source: str) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler for Linux")
    file = folder / "probe.c"
    file.write_text(FRAME % source, encoding="utf-8")
    subprocess.run([compiler, "-O3", "-march=native", "-pthread", file, "-o", folder / "probe"], check=True)
    return folder / "probe"


def reached(probe: Path, threads: int) -> float:
    return float(subprocess.run([probe, str(threads), "10"], capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_that_of_a_compiled_probe(tmp_path: Path, threads: int) -> None:
    if (os.cpu_count() or 1) < threads:
        pytest.skip("too few processors")
    probe = compiled(tmp_path, READ)
    pairs = [(limit.bandwidth(threads, 0.3), reached(probe, threads)) for _ in range(6)]
    ours, theirs = map(max, zip(*pairs, strict=True))
    assert 0.85 < ours / theirs < 1.15, f"{ours / 1e9:.1f} and {theirs / 1e9:.1f} GB/s"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("threads", [1, 2])
def test_products_come_close_to_what_the_instruction_does(tmp_path: Path, threads: int) -> None:
    features = machine().features or ()
    if (os.cpu_count() or 1) < threads or not {"avx512_vnni", "avx2"} & set(features):
        pytest.skip("too few processors, or of another kind")
    probe = compiled(tmp_path, MULTIPLY)
    pairs = [(limit.int8_products(threads, 0.5) or 0.0, reached(probe, threads)) for _ in range(6)]
    ours, theirs = map(max, zip(*pairs, strict=True))
    lowest = 0.85 if "avx512_vnni" in features else 0.6
    assert lowest < ours / theirs < 1.05, f"{ours / 1e9:.1f} and {theirs / 1e9:.1f} thousand million a second"


def test_measuring_leaves_nothing_behind() -> None:
    before = threading.active_count()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert limit.bandwidth(2, 0.0) > 0
    assert (limit.int8_products(2, 0.0) or 0) > 0
    assert threading.active_count() == before
    assert allowed is None or os.sched_getaffinity(0) == allowed


def test_threads_keep_to_their_processors_and_share_all_pieces() -> None:
    allowed = limit.allowed_cpus()
    cpus, done, seen = frozenset(sorted(allowed)[:1]), [], set()

    def work(worker: int, piece: int) -> None:
        done.append(piece)
        if hasattr(os, "sched_getaffinity"):
            seen.add(frozenset(os.sched_getaffinity(0)))

    with limit.Team(3, cpus) as team:
        assert team.time(100, work) > 0
        assert team.time(50, work) > 0
    assert sorted(done) == sorted([*range(100), *range(50)])
    assert seen <= {cpus}


def test_an_error_in_a_piece_comes_out() -> None:
    def work(worker: int, piece: int) -> None:
        raise ValueError(str(piece))

    with limit.Team(2, limit.allowed_cpus()) as team, pytest.raises(ValueError, match=r"\d"):
        team.time(5, work)


def test_caches_that_are_shared_count_once(tmp_path: Path) -> None:
    for cpu in range(4):
        for index, (size, shared) in enumerate(
            [("32K", str(cpu)), ("32K", str(cpu)), ("1M", str(cpu)), ("32768K", f"{cpu & 2}-")]
        ):
            here = f"{CACHE}{cpu}/cache/index{index}/"
            lay(tmp_path, {f"{here}size": size, f"{here}shared_cpu_list": shared})
    assert limit.last_level_bytes([0, 1], tmp_path) == 32 * MIB
    assert limit.last_level_bytes(range(4), tmp_path) == 64 * MIB
    assert limit.last_level_bytes(range(4), tmp_path / "none") == 0


def test_the_buffer_is_past_the_caches_and_fits_into_memory(tmp_path: Path) -> None:
    lay(tmp_path, {f"{CACHE}0/cache/index0/size": "100M"})
    assert limit.buffer_bytes([0], None, tmp_path) == 400 * MIB
    assert limit.buffer_bytes([1], None, tmp_path) == 256 * MIB, "a board whose kernel does not tell"
    assert limit.buffer_bytes([0], 512 * MIB + 4, tmp_path) == 128 * MIB


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_the_product_in_onnx(dtype: type[np.generic]) -> None:
    """Well-formed as the onnx package sees it, and what comes out is the product."""
    data = products.onnx_model(dtype)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    (node,), (weight,) = model.graph.node, model.graph.initializer
    assert node.op_type == "MatMulInteger"
    codes = onnx.numpy_helper.to_array(weight)
    assert codes.dtype == np.int8
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).integers(0, 127, (products.ROWS, products.INNER)).astype(dtype)
    (found,) = session.run(None, {"x": x})
    wanted = x.astype(np.float64) @ codes.astype(np.float64)  # exact: far below 2**53
    assert found.shape == (products.ROWS, products.COLUMNS)
    np.testing.assert_array_equal(found, wanted)
    assert wanted.size * x.shape[1] == products.PRODUCTS


def test_the_product_in_litert() -> None:
    """Quantized to 8 bits as it runs: within a row, what comes out is off by half a step of x at most, for each product."""
    data = products.litert_model(schema_py_generated)
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    (x_details,), (y_details,) = interpreter.get_input_details(), interpreter.get_output_details()
    x = np.random.default_rng(1).uniform(-1, 1, x_details["shape"]).astype(np.float32)
    interpreter.set_tensor(x_details["index"], x)
    interpreter.invoke()
    buffer = schema_py_generated.ModelT.InitFromPackedBuf(data).buffers[1].data
    weight = np.array(buffer).view(np.int8).reshape(products.COLUMNS, products.INNER) * 0.01
    found = interpreter.get_tensor(y_details["index"])
    assert found.shape == (products.ROWS, products.COLUMNS)
    assert np.abs(found - x @ weight.T).max() < np.abs(weight).sum(axis=1).max() * (1 / 127)
    assert np.corrcoef(found.ravel(), (x @ weight.T).ravel())[0, 1] > 0.999


def test_without_a_runtime_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, package, None)
    assert limit.int8_products(1, 0.0) is None


@pytest.mark.parametrize("package", ["onnxruntime", "ai_edge_litert"])
def test_one_runtime_is_enough(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert (limit.int8_products(1, 0.0) or 0) > 0
