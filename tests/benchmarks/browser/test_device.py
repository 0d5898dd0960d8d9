"""What browsers say of their devices, by user agents as they are in the wild."""

from __future__ import annotations

import pytest

from edgellm.benchmarks.browser.device import DESK, GIB, MIB, Gpu, Hello, clean, too_large

ANDROID = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Mobile Safari/537.36"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.5 Mobile/15E148 Safari/604.1"
)
IPAD = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
EDGE = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Safari/537.36 "
    "Edg/143.0.3650.66"
)


@pytest.mark.parametrize(
    ("agent", "touch", "system", "browser"),
    [
        (ANDROID, 5, "Android", "Chrome 143.0.0.0"),
        (IPHONE, 5, "iOS", "Safari 18.5"),
        (IPAD, 5, "iOS", "Safari 18.5"),
        (IPAD, 0, "other", "Safari 18.5"),
        (FIREFOX, 0, "other", "Firefox 140.0"),
        (EDGE, 10, "other", "Edge 143.0.3650.66"),
        ("curl", 0, "other", "a browser"),
    ],
)
def test_system_and_browser(agent: str, touch: int, system: str, browser: str) -> None:
    hello = Hello("mine", agent, touch=touch)
    assert (hello.system, hello.browser) == (system, browser)


def test_the_machine_of_a_phone() -> None:
    hello = Hello("mine", ANDROID, "Android", "15.0.0", "arm", "64", "Pixel 8", cores=9, memory=8, isolated=True)
    machine = hello.machine()
    assert (machine.system, machine.architecture, machine.model) == ("Android 15.0.0", "arm 64", "Pixel 8")
    assert (machine.cores, machine.memory, machine.emulated) == (9, 8 * GIB, None)
    assert machine.python == "none: Chrome 143.0.0.0"
    assert hello.threads == 9


def test_the_machine_of_one_that_tells_nothing() -> None:
    machine = Hello("mine", IPHONE, cores=4).machine()
    assert (machine.system, machine.architecture, machine.model, machine.memory) == ("iOS", "unknown", None, None)
    assert Hello("mine", IPHONE, cores=4).threads == 1  # not isolated


def test_names_of_a_gpu() -> None:
    assert Gpu("qualcomm", "adreno-7xx").name == "qualcomm adreno-7xx"
    assert Gpu("arm", "valhall", "", "Mali-G715").name == "Mali-G715"
    assert Gpu(fallback=True).name == "unknown (software)"


def test_what_a_stranger_says_is_harmless() -> None:
    assert clean("\x1b[31m red \n\n <b>" + "x" * 500) == ("31m red b " + "x" * 500)[:80]
    assert Hello("n", "a", platform="\x1b]0;pwned\x07").machine().system == "0;pwned"


@pytest.mark.parametrize(
    ("system", "weights", "largest", "refused"),
    [
        ("iOS", 499 * MIB, 499 * MIB, False),
        ("iOS", 501 * MIB, 501 * MIB, True),
        ("Android", GIB - MIB, GIB - MIB, False),
        ("Android", GIB + 1, GIB + 1, True),
        ("other", DESK - MIB, DESK - MIB, False),
        ("other", DESK + 1, GIB, True),
        ("other", 2 * GIB, 2 * GIB, True),
    ],
)
def test_what_a_browser_cannot_hold(system: str, weights: int, largest: int, refused: bool) -> None:
    assert (too_large(system, weights, largest, MIB) is not None) == refused


def test_the_cache_counts_too() -> None:
    assert too_large("iOS", 400 * MIB, 400 * MIB, 101 * MIB) == (
        "400 MiB of weights and 101 MiB of KV cache: a browser on iOS holds about 500 MiB"
    )
