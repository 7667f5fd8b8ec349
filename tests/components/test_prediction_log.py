"""The prediction log never slows and never fails a request: what it cannot keep is lost, counted, and said once."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from kfp_flywheel.components.recipes.detection.log import pictures_of, read_window
from kfp_flywheel.components.recipes.detection.predict import Detections
from kfp_flywheel.components.recipes.detection.window import Window
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.artifacts import Release
from kfp_flywheel.components.serving import prediction_log
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.components.serving.model_server import SERVING_AT
from kfp_flywheel.components.serving.prediction_log import LOGGED, PredictionLog

from tests.tiny import tiny_images, tiny_release
from tests.waiting import wait_for

IMAGES = tiny_images()
SEEN = Detections(
    np.array([[0, 0, 9, 9]], np.float32), np.array([0.5], np.float32), np.array([1]), np.zeros(3, np.float32)
)
OUTCOMES = ("written", "dropped", "failed")


class SlowStore(LocalStore):
    """Writes when it is told to."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.asked, self.may = threading.Event(), threading.Event()

    def put(self, key: str, source: bytes | Path) -> str:
        self.asked.set()
        self.may.wait()
        return super().put(key, source)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in between is written soon."""
    monkeypatch.setattr(prediction_log, "SPAN_S", 0.1)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "flywheel")
    return lambda: caplog.messages


def counted() -> dict[str, int]:
    return {outcome: int(LOGGED.labels(outcome)._value.get()) for outcome in OUTCOMES}


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """What a block adds to the counters, afterwards."""
    before, added = counted(), dict[str, int]()
    yield added
    added |= {outcome: count - before[outcome] for outcome, count in counted().items()}


def logged(root: str) -> Window:
    window, left_out = read_window(LocalStore(root), "detector", "v1", 10_000)
    assert left_out == []
    return window


def test_requests_can_be_read_soon_with_their_images(root: str) -> None:
    kept = PredictionLog(LocalStore(root), "detector", "v1", "p")
    for image in IMAGES:
        kept.offer(image, SEEN)
    wait_for(lambda: logged(root).requests == len(IMAGES), 20)
    assert list(pictures_of(LocalStore(root), logged(root).pictures)) == IMAGES
    kept.close()
    assert len(list(LocalStore(root).list("predictions/"))) <= 2, "no write a request"


def test_a_slow_store_holds_nobody_up(
    root: str, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(prediction_log, "MAX_REQUESTS", 10)
    store = SlowStore(root)
    with counting() as added:
        kept = PredictionLog(store, "detector", "v1", "p")
        kept.offer(IMAGES[0], SEEN)
        assert store.asked.wait(20)
        for _ in range(30):
            kept.offer(IMAGES[0], SEEN)  # comes back though the store does not
        assert said() == ["prediction log: loses requests: they come faster than they are written"]
        store.may.set()
        wait_for(lambda: logged(root).requests == 10, 20)
        kept.offer(IMAGES[0], SEEN)
        kept.close()
    assert added == {"written": 11, "dropped": 21, "failed": 0}
    assert said()[1:] == ["prediction log: is written again"]


def test_what_waits_is_bounded_in_bytes_too(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "MAX_BYTES", 2 * len(IMAGES[0]))
    store = SlowStore(root)
    kept = PredictionLog(store, "detector", "v1", "p")
    with counting() as added:
        for _ in range(3):
            kept.offer(IMAGES[0], SEEN)
    assert added["dropped"] == 1
    store.may.set()
    kept.close()


def test_a_store_that_cannot_be_written_is_said_once_and_may_come_back(
    root: str, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    (tmp_path / "store").write_text("a file where a folder is wanted")
    with counting() as added:
        kept = PredictionLog(LocalStore(root), "detector", "v1", "p")
        for number in range(1, 4):
            kept.offer(IMAGES[0], SEEN)
            wait_for(lambda number=number: LOGGED.labels("failed")._value.get() >= number, 20)
        (tmp_path / "store").unlink()
        kept.offer(IMAGES[0], SEEN)
        kept.close()
    assert added == {"written": 1, "dropped": 0, "failed": 3}
    assert re.match(r"prediction log: fails: .* could not be written: Not a directory", said()[0])
    assert said()[1:] == ["prediction log: is written again"]


def test_an_image_that_cannot_be_described_takes_no_other_along(root: str, said: Callable[[], list[str]]) -> None:
    kept = PredictionLog(LocalStore(root), "detector", "v1", "p")
    with counting() as added:
        for content in (IMAGES[0], b"no image", IMAGES[1]):
            kept.offer(content, SEEN)
        kept.close()
    assert added == {"written": 2, "dropped": 0, "failed": 1}
    assert said() == ["prediction log: fails: 8 bytes are not an image. Next: send a JPEG, PNG, WebP, BMP or TIFF file"]


def test_a_share_of_the_requests_is_kept(root: str) -> None:
    kept = PredictionLog(LocalStore(root), "detector", "v1", "p", share=0.5)
    for _ in range(400):
        kept.offer(IMAGES[0], SEEN)
    kept.close()
    assert 120 < logged(root).requests < 280  # eight standard deviations


def test_a_store_that_never_answers_does_not_keep_the_server_from_ending(
    root: str, said: Callable[[], list[str]]
) -> None:
    store = SlowStore(root)
    kept = PredictionLog(store, "detector", "v1", "p")
    kept.offer(IMAGES[0], SEEN)
    assert store.asked.wait(20)
    kept.close(timeout_s=0.01)
    assert said() == ["prediction log: 1 requests are lost: the store is too slow"]
    store.may.set()
    kept.close()


@contextmanager
def model_server(root: str, release: Release, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A model server by itself, and its address."""
    command = [sys.executable, "-m", "kfp_flywheel.components.serving.model_server", "--port", "0"]
    command += ["--package", release.package_uri, "--store", root, "--name", "detector", "--version", "v1", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith(SERVING_AT))
            url = line.removeprefix(SERVING_AT).split()[0]
            wait_for(lambda: _is_ready(url), 60)
            yield process, url
        finally:
            process.kill()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/models/detector/ready", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_server_that_ends_writes_what_is_left(root: str) -> None:
    release = tiny_release(LocalStore(root))
    with model_server(root, release) as (process, url):
        found = [infer(url, "detector", image) for image in IMAGES]
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    window = logged(root)
    np.testing.assert_array_equal(window.scores, np.concatenate([answer.scores for answer in found]))
    assert sorted(pictures_of(LocalStore(root), window.pictures)) == sorted(IMAGES)


def test_a_server_without_a_log_writes_none_and_one_without_a_store_answers(root: str, tmp_path: Path) -> None:
    release = tiny_release(LocalStore(root))
    with model_server(root, release, "--log-share", "0") as (process, url):
        infer(url, "detector", IMAGES[0])
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert list(LocalStore(root).list("predictions/")) == []
    (tmp_path / "store" / "predictions").write_text("a file where a folder is wanted")
    with model_server(root, release) as (_, url):
        infer(url, "detector", IMAGES[0])
        failed = 'flywheel_prediction_log_total{outcome="failed"} 1.0'
        wait_for(lambda: failed in httpx.get(f"{url}/metrics", trust_env=False).text, 30)
        infer(url, "detector", IMAGES[0])


def test_a_share_that_is_none_is_refused(root: str) -> None:
    flags = ["--package", "p", "--store", root, "--name", "n", "--version", "v1", "--log-share", "2"]
    command = [sys.executable, "-m", "kfp_flywheel.components.serving.model_server", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--log-share is 2" in done.stdout


WRITER = """
import sys, time
from kfp_flywheel.components.serving import prediction_log
from kfp_flywheel.components.runtime.wiring import open_store
from tests.components.test_prediction_log import IMAGES, SEEN
prediction_log.BATCH_REQUESTS = 2
log = prediction_log.PredictionLog(open_store(sys.argv[1]), "detector", "v1", "p")
while True:
    log.offer(IMAGES[0], SEEN)
    time.sleep(0.001)
"""


def test_a_writer_that_is_killed_leaves_whole_objects(root: str) -> None:
    store = LocalStore(root)
    for batches in (5, 10, 15):
        with subprocess.Popen([sys.executable, "-c", WRITER, root], env=os.environ) as writer:
            wait_for(lambda least=batches: len(list(store.list("predictions/"))) > least, 60)
            writer.kill()
        window = logged(root)
        assert window.requests == 2 * len(list(store.list("predictions/")))
        assert set(pictures_of(store, window.pictures)) == {IMAGES[0]}
