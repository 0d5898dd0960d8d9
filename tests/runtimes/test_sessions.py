"""What every runtime's sessions do, against transformers on a tiny model: whatever adapter is there is tested here."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edgellm import runtimes
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import UsageError
from edgellm.runtimes import onnx, open_runtime, tflite
from edgellm.runtimes.session import Runtime, Session

IDS = np.random.default_rng(3).integers(3, 259, 1300).tolist()
FILES = Path(runtimes.__path__[0]).glob("*.py")
ADAPTERS = sorted(file.stem for file in FILES if "\ndef load(bundle: Bundle" in file.read_text(encoding="utf-8"))
# where a chunk or a capacity of some adapter ends
TFLITE_STEP = tflite.STEPS["float32"]
ENDS = {onnx.CHUNK, onnx.FIRST_CAPACITY, TFLITE_STEP, 2 * TFLITE_STEP}
LENGTHS = sorted({1, 2, 5, 8, 9, 10, 65, 66, 700} | {end + more for end in ENDS for more in (-1, 0, 1, 2)})


def test_the_adapters_are_found() -> None:
    assert {"onnx", "tflite"} <= set(ADAPTERS)


@pytest.fixture(scope="module", params=ADAPTERS)
def bundle(request: pytest.FixtureRequest, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for each runtime, at float32."""
    return convert(tiny_source, tmp_path_factory.mktemp("sessions") / "tiny", target=request.param, quant="fp32").path


@pytest.fixture(scope="module")
def reference(tiny_source: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """transformers' logits after each of IDS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    runtime = open_runtime(Bundle.open(bundle), threads=2)
    yield runtime
    runtime.close()


@pytest.fixture
def session(runtime: Runtime) -> Iterator[Session]:
    session = runtime.session()
    yield session
    session.close()


def near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_prefill_in_one_run(session: Session, reference: Any) -> None:
    near(session.prefill(IDS[:9]), reference[8])
    assert session.length == 9


def test_prefill_in_several_runs(session: Session, reference: Any) -> None:
    assert len(IDS) > 2 * onnx.CHUNK
    near(session.prefill(IDS), reference[-1])
    assert session.length == len(IDS)


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_at_the_edges(session: Session, reference: Any, length: int) -> None:
    near(session.prefill(IDS[:length]), reference[length - 1])
    near(session.decode(IDS[length]), reference[length])


@pytest.mark.parametrize("more", [2, 5, 70])
@pytest.mark.parametrize("before", [76, 72, 9, 6, 3, 1, 0])
def test_a_chunk_at_the_end_of_the_cache(session: Session, reference: Any, before: int, more: int) -> None:
    """Padding, too, must not reach past the cache: an operator that clamps would write it over earlier tokens."""
    start = TFLITE_STEP - before
    session.prefill(IDS[:start])
    near(session.prefill(IDS[start : start + more]), reference[start + more - 1])
    end = TFLITE_STEP + 5
    session.rewind(start)
    near(session.logits(IDS[start:end]), reference[start:end])
    near(session.decode(IDS[end]), reference[end])


def test_decode_while_the_cache_grows(session: Session, reference: Any) -> None:
    """Through capacities of 256, 512 and 1024 tokens."""
    session.prefill(IDS[:200])
    for index in range(200, 1100):
        near(session.decode(IDS[index]), reference[index])
    assert session.length == 1100


def test_prefill_after_decode(session: Session, reference: Any) -> None:
    session.prefill(IDS[:5])
    session.decode(IDS[5])
    near(session.prefill(IDS[6:700]), reference[699])


def test_logits_of_every_token(session: Session, reference: Any) -> None:
    first = session.logits(IDS[:300])
    near(first, reference[:300])
    near(session.logits(IDS[300:340]), reference[300:340])
    near(session.decode(IDS[340]), reference[340])
    near(first, reference[:300])  # the caller's own, whatever the session does next
    assert session.length == 341


def test_rewind(session: Session, reference: Any) -> None:
    session.prefill(IDS[:600])
    session.rewind(40)
    assert session.length == 40
    near(session.decode(IDS[40]), reference[40])
    near(session.prefill(IDS[41:90]), reference[89])
    session.rewind(0)
    near(session.prefill(IDS[:3]), reference[2])
    for length in (-1, 4):
        with pytest.raises(UsageError, match=f"rewind to {length}"):
            session.rewind(length)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no token ids"),
        ([5, 259], "259 is outside"),
        ([-1], "-1 is outside"),
        ([5, 2**62], "outside"),
        ([1.5, 2.0], "integers"),
        ([[1, 2]], "flat"),
        ([[1], [2, 3]], "flat"),
        (["a"], "integers"),
        ([3] * 4097, "4106, and the context is 4096"),
    ],
)
def test_refused_ids_change_nothing(session: Session, reference: Any, ids: Any, message: str) -> None:
    session.prefill(IDS[:9])
    for call in (session.prefill, session.logits):
        with pytest.raises(UsageError, match=message):
            call(ids)
    assert session.length == 9
    near(session.decode(IDS[9]), reference[9])


@pytest.mark.parametrize("token", [-1, 259])
def test_a_refused_token_changes_nothing(session: Session, reference: Any, token: int) -> None:
    session.prefill(IDS[:9])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        session.decode(token)
    assert session.length == 9
    near(session.decode(IDS[9]), reference[9])


def test_a_full_context(bundle: Path, reference: Any) -> None:
    session = open_runtime(Bundle.open(bundle), threads=1, max_context=20).session()
    near(session.prefill(IDS[:20]), reference[19])
    with pytest.raises(UsageError, match="context is 20"):
        session.decode(5)
    session.rewind(19)
    near(session.decode(IDS[19]), reference[19])


def test_two_sessions_from_two_threads(runtime: Runtime) -> None:
    """Bit for bit what each gives alone."""

    def run(start: int, result: list[Any]) -> None:
        session = runtime.session()
        result.append(session.prefill(IDS[start : start + 300]).copy())
        result.extend(session.decode(token).copy() for token in IDS[start + 300 : start + 400])

    alone: list[list[Any]] = [[], []]
    together: list[list[Any]] = [[], []]
    for start, result in enumerate(alone):
        run(start * 50, result)
    threads = [threading.Thread(target=run, args=(start * 50, result)) for start, result in enumerate(together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_growth_of_one_session_leaves_another_alone(runtime: Runtime, reference: Any) -> None:
    small, large = runtime.session(), runtime.session()
    small.prefill(IDS[:20])
    for index in range(20, 40):
        near(large.prefill(IDS[(index - 20) * 50 : (index - 19) * 50]), reference[(index - 19) * 50 - 1])
        near(small.decode(IDS[index]), reference[index])
    small.close()
    large.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps mapped files in place")
def test_sessions_share_the_weights_that_were_loaded(bundle: Path, tmp_path: Path, reference: Any) -> None:
    """Nothing is read again: a session opened when the bundle is gone works."""
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    runtime = open_runtime(Bundle.open(folder), threads=1)
    runtime.session().prefill(IDS[:9])
    shutil.rmtree(folder)
    near(runtime.session().prefill(IDS[:20]), reference[19])


def test_an_idle_model_burns_no_cpu(runtime: Runtime) -> None:
    session = runtime.session()
    for token in IDS[:50]:
        session.decode(token)
    time.sleep(0.1)
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.05


def test_closed_means_closed(bundle: Path) -> None:
    runtime = open_runtime(Bundle.open(bundle), threads=1)
    session, other = runtime.session(), runtime.session()
    session.decode(5)
    session.close()
    session.close()
    for call in (lambda: session.decode(5), lambda: session.prefill([5, 6]), lambda: session.logits([5])):
        with pytest.raises(UsageError, match="closed"):
            call()
    other.prefill([5, 6])
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        other.decode(5)
    with pytest.raises(UsageError, match="closed"):
        runtime.session()
