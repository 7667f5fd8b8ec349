"""Keeps what a version is asked and what it sees, for monitoring. A request only leaves it here and goes on.

One thread describes the images, one after another, and writes them in batches. What there is no room for, and what
cannot be written, is lost and counted: the log never slows a request, and never fails one.
"""

import logging
import queue
import random
import threading
import time
import uuid
from functools import partial
from typing import NamedTuple

from prometheus_client import Counter

from ..recipes.detection.features import features
from ..recipes.detection.log import SPAN_S, Entry, write
from ..recipes.detection.predict import Detections, decode
from ..runtime.ports import Store

MAX_REQUESTS, MAX_BYTES = 2000, 64 << 20
"""What may wait, or be at work, at once."""
BATCH_REQUESTS, BATCH_BYTES = 200, 16 << 20
PAUSE_S = 0.05
"""Until a request is looked at: its answer, which needs the interpreter too, is to be gone by then."""
CLOSE_S = 4.0
log = logging.getLogger("flywheel")
LOGGED = Counter("flywheel_prediction_log", "Requests that the prediction log was to keep", ["outcome"])
WRITTEN, DROPPED, FAILED = (LOGGED.labels(outcome) for outcome in ("written", "dropped", "failed"))


class Asked(NamedTuple):
    """A request as it is left here: when it was answered, its encoded image, and what was seen in it."""

    at: float
    content: bytes
    found: Detections


class PredictionLog:
    """The log of one version in one process.

    Args:
        package: Id of the package that is asked.
        share: Of the requests, chosen at random, that are kept.
    """

    def __init__(self, store: Store, endpoint: str, version: str, package: str, share: float = 1.0) -> None:
        self.share = share
        self._write = partial(write, store, endpoint, version, package, uuid.uuid4().hex[:12])
        self._asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._requests = self._bytes = self._lost = 0
        self._state = "is written again"
        self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._thread.start()

    def offer(self, content: bytes, found: Detections) -> None:
        """Leave a request here, or lose it. Never waits."""
        if random.random() >= self.share:
            return
        with self._lock:
            room = self._requests < MAX_REQUESTS and self._bytes + len(content) <= MAX_BYTES
            if room:
                self._requests += 1
                self._bytes += len(content)
            else:
                self._lost += 1
        if room:
            self._asked.put(Asked(time.time(), content, found))
        else:
            DROPPED.inc()
            self._turn("loses requests", "they come faster than they are written")

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is left, as far as the time allows."""
        self._asked.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("prediction log: %d requests are lost: the store is too slow", self._requests)

    def _work(self) -> None:
        batch: list[Entry] = []
        until = 0.0
        while True:
            try:
                asked = self._asked.get(timeout=max(until - time.monotonic(), 0) if batch else None)
            except queue.Empty:
                self._put(batch)
                batch = []
                continue
            if batch and (asked is None or _is_full(batch, asked)):
                self._put(batch)
                batch = []
            if asked is None:
                return
            if not batch:
                until = time.monotonic() + SPAN_S
            batch += self._described(asked)

    def _described(self, asked: Asked) -> list[Entry]:
        time.sleep(min(max(asked.at + PAUSE_S - time.time(), 0), PAUSE_S))
        try:
            return [Entry(asked.at, asked.content, features(decode(asked.content), asked.found), asked.found)]
        except Exception as error:  # whatever an image leads to: it was answered, and others follow
            with self._lock:
                self._lost += 1
            self._lose([asked], error)
            return []

    def _put(self, batch: list[Entry]) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0  # since the batch before
        try:
            self._write(batch)
        except Exception as error:  # whatever a store's library raises
            self._lose(batch, error)
            return
        WRITTEN.inc(len(batch))
        self._release(batch)
        if not lost:
            self._turn("is written again")

    def _lose(self, lost: list[Asked] | list[Entry], error: Exception) -> None:
        FAILED.inc(len(lost))
        self._release(lost)
        self._turn("fails", str(error) or type(error).__name__)

    def _release(self, done: list[Asked] | list[Entry]) -> None:
        with self._lock:
            self._requests -= len(done)
            self._bytes -= sum(len(one.content) for one in done)

    def _turn(self, state: str, why: str = "") -> None:
        """Say it once when the state changes; no word in between, however many requests are lost."""
        if state != self._state:
            self._state = state
            log.warning("prediction log: %s%s", state, f": {why}" if why else "")


def _is_full(batch: list[Entry], asked: Asked) -> bool:
    apart = asked.at - batch[0].at  # negative when the clock was set back
    size = sum(len(entry.content) for entry in batch) + len(asked.content)
    return len(batch) >= BATCH_REQUESTS or size > BATCH_BYTES or not 0 <= apart <= SPAN_S
