"""Real rollouts of a release that is as good as the champion: `python -m tests.bench.rollouts [COUNT]`.

The demo's detector, twice; real model servers, gateway and requests. The latencies of one machine are not independent,
so what holds in a simulation has to be seen here. Ten minutes; nothing else may be at work.
"""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from kfp_flywheel.components.runtime.artifacts import ModelPackage, content_id
from kfp_flywheel.components.runtime.blobs import put_blob
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.serving.serve import serving
from kfp_flywheel.pipelines.demo.world import Oracle
from kfp_flywheel.pipelines.traffic import send

from tests.canaries import release_of, roll
from tests.tiny import tiny_package

from .figures import Figure, publish
from .traffic import detector

RATE = 60.0
SETTINGS = {"replays": 0, "max_seconds": 300.0}


def quiet(line: str) -> None:
    """Nobody listens."""


def packages(world: World) -> tuple[ModelPackage, ModelPackage]:
    """The demo's detector, and the same under another id."""
    folder = detector()
    files = {path.name: put_blob(world.store, path, path.suffix) for path in sorted(folder.iterdir())}
    names = tuple("0123456789")
    one = tiny_package(world.store).but(id=content_id(["a", files["model.onnx"].sha256]), files=files, names=names)
    two = one.but(id=content_id(["b", one.id]))
    for package in (one, two):
        keep(world.store, package)
    return one, two


def figures(count: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        world = connect(Platform.local(Path(name)))
        both = packages(world)
        champion = release_of(world.store, "1", both[0])
        with serving(world.platform) as url:
            roll(world, champion, None, "run-1", quiet, **SETTINGS)
            over = threading.Event()
            pictures = Oracle().pictures(400, seed=9)
            users = threading.Thread(target=send, args=(url, "detector", pictures, RATE, 0, 0, lambda sent: None, over))
            users.start()
            try:
                time.sleep(3)  # the stable's own times become known
                ended = []
                for number in range(2, count + 2):
                    release = release_of(world.store, str(number), both[number % 2])
                    start = time.monotonic()
                    found = roll(world, release, champion, f"run-{number}", quiet, **SETTINGS)
                    ended.append((found, time.monotonic() - start))
                    print(f"{number - 1}: {found.decision} in {ended[-1][1]:.0f} s: {found.reason}", flush=True)
                    if found.decision == "promote":
                        champion = release
            finally:
                over.set()
                users.join()
    decisions = [found.decision for found, _ in ended]
    seconds = [took for _, took in ended]
    peer = f"{count} real rollouts of an equal release, {RATE:g} requests a second"
    return [
        Figure("real A/A: rolled back", decisions.count("rollback"), "", "<=", 1, peer),
        Figure("real A/A: promoted", decisions.count("promote"), "", ">=", 0.9 * count, peer),
        Figure("real A/A: seconds, median", statistics.median(seconds), "s", "<=", 120, peer, tuple(seconds)),
    ]


if __name__ == "__main__":
    publish("rollouts", figures(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
