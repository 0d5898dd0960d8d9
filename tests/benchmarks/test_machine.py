from __future__ import annotations

import os
import platform
import sys

import numpy as np
import pytest

from edgellm.benchmarks.machine import known_features, machine, peak_rss


def test_features_are_named_alike_on_every_system() -> None:
    linux_x86 = "fpu sse2 avx2 avx512f avx512_vnni amx_int8 avx_vnni"
    assert known_features(linux_x86) == ("amx_int8", "avx2", "avx512_vnni", "avx512f", "avx_vnni")
    raspberry_pi_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    assert known_features(raspberry_pi_5) == ("dotprod", "fp16", "neon")
    assert known_features("FEAT_DotProd FEAT_I8MM") == ("dotprod", "i8mm")
    assert known_features("") == ()


def test_this_machine() -> None:
    this = machine()
    assert this.architecture == platform.machine()
    assert this.cores == os.cpu_count()
    assert this.cpu
    if sys.platform == "linux":
        psutil = pytest.importorskip("psutil")
        assert this.memory is not None
        assert abs(this.memory / psutil.virtual_memory().total - 1) < 0.01


@pytest.mark.skipif(sys.platform == "win32", reason="there is no getrusage on Windows")
def test_peak_rss_counts_bytes_and_never_falls() -> None:
    before = peak_rss()
    assert before is not None
    grown = np.ones(64 << 20, np.uint8)
    peak = peak_rss()
    assert peak is not None
    assert peak >= len(grown)
    del grown
    # the kernel sums counters of each processor now and then: the peak is right to some hundred KB
    assert (peak_rss() or 0) + (1 << 20) >= peak >= before
