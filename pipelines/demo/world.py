"""The world around the demo's endpoint: what its cameras see, who asks, and an oracle that knows every label."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...components.runtime.artifacts import Box, LabelRequest
from ...components.runtime.ports import Serving
from ..traffic import Sent, send
from . import digits

Camera = Callable[[digits.Image, np.random.Generator], digits.Image]
RATE = 40.0
LOOK_S = 0.3


def cheap_camera(image: digits.Image, rng: np.random.Generator) -> digits.Image:
    """What another camera makes of a picture: dark, warm, out of focus and noisy. RGB, 8 bits."""
    seen = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.6)
    seen = seen * rng.uniform(0.3, 0.45) * np.array([1.15, 1.0, 0.7]) + 8
    noisy: digits.Image = np.clip(seen + rng.normal(0, 14, seen.shape), 0, 255).astype(np.uint8)
    return noisy


class Oracle:
    """Pictures that users send, and their labels, which nobody else knows."""

    def __init__(self) -> None:
        self.boxes: dict[str, tuple[Box, ...]] = {}

    def pictures(self, count: int, seed: int, camera: Camera | None = None, size: int = 160) -> list[bytes]:
        """Draw pictures that no split has, as JPEG files."""
        rng = np.random.default_rng([seed, 1])
        made = []
        for image, boxes in digits.images("test", count, size, seed):
            seen = camera(image, rng) if camera else image
            quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
            content = bytes(cv2.imencode(".jpg", cv2.cvtColor(seen, cv2.COLOR_RGB2BGR), quality)[1].tobytes())
            self.boxes[hashlib.sha256(content).hexdigest()] = tuple(boxes)
            made.append(content)
        return made

    def label(self, request: LabelRequest) -> None:
        """Write the label file of each image of a request, as a person would, into its folder on this machine."""
        labels = Path(request.folder.removeprefix("file://"), "labels")
        labels.mkdir(exist_ok=True)
        known = {sha256[:16]: boxes for sha256, boxes in self.boxes.items()}
        for name in request.images:
            stem = name.rpartition(".")[0]
            lines = "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in known[stem])
            (labels / f"{stem}.txt").write_text(lines)


class Users:
    """They send pictures to an endpoint, and remember each answer."""

    def __init__(self, url: str, endpoint: str, serving: Serving) -> None:
        self.url, self.endpoint, self.serving = url, endpoint, serving
        self.sent: list[Sent] = []

    def ask(self, pictures: Sequence[bytes]) -> None:
        """Send each picture once."""
        self._send(pictures, len(pictures), threading.Event())

    @contextlib.contextmanager
    def during_canaries(self, pictures: Sequence[bytes]) -> Iterator[None]:
        """Meanwhile, send pictures whenever the endpoint has more than one version: training needs every core."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(LOOK_S):
                if self._canary():
                    stop = threading.Event()
                    sender = threading.Thread(target=self._send, args=(pictures, 0, stop))
                    sender.start()
                    while self._canary() and not over.wait(LOOK_S):
                        pass
                    time.sleep(1)  # the new champion is asked too
                    stop.set()
                    sender.join()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _canary(self) -> bool:
        return len(self.serving.read(self.endpoint).versions) > 1

    def _send(self, pictures: Sequence[bytes], requests: int, stop: threading.Event) -> None:
        send(self.url, self.endpoint, pictures, RATE, requests, 0, self.sent.append, stop, seed=len(self.sent))
