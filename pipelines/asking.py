"""`flywheel predict` and `flywheel status`: ask an endpoint about a picture, and about itself."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..components.runtime.artifacts import ModelPackage
from ..components.runtime.config import Platform
from ..components.runtime.errors import UserError
from ..components.runtime.wiring import connect


def predict(image: Path, endpoint: str, out: Path, platform: Platform) -> dict[str, Any]:
    """Send a picture to an endpoint and write it with its boxes drawn.

    Raises:
        UserError: The picture cannot be read, or nothing serves the endpoint.
    """
    import cv2

    from ..components.recipes.detection.draw import draw
    from ..components.recipes.detection.predict import decode
    from ..components.serving.client import infer

    try:
        content = image.read_bytes()
    except OSError as error:
        raise UserError(f"{image} cannot be read: {error.strerror}.", f"ls -l {image}") from error
    picture = decode(content)
    world = connect(platform)
    champion = world.serving.read(endpoint).champion
    url = world.serving.url(endpoint)
    if champion is None:
        raise UserError(f"endpoint {endpoint} has no model yet.", "flywheel run --data path/to/data.yaml")
    if not url:
        raise UserError(f"nobody serves endpoint {endpoint} at the moment.", "flywheel serve")
    names = ModelPackage.from_json(world.store.get(champion.package_uri), champion.package_uri).names
    answer = infer(url, endpoint, content)
    ok, encoded = cv2.imencode(out.suffix or ".jpg", draw(picture, answer, names))
    if not ok:
        raise UserError(f"{out} cannot be written as a picture.", "--out boxes.jpg")
    out.write_bytes(encoded.tobytes())
    found = zip(answer.boxes.tolist(), answer.scores.tolist(), answer.classes.tolist(), strict=True)
    return {
        "image": str(image),
        "version": answer.version,
        "drawn": str(out),
        "detections": [
            {"name": names[kind], "score": round(score, 4), "box": [round(edge, 1) for edge in box]}
            for box, score, kind in found
        ],
    }


def show(answer: dict[str, Any]) -> None:
    """Print the answer of `predict` as a table."""
    table = Table("class", "score", "box x0, y0, x1, y1 (px)")
    for found in answer["detections"]:
        table.add_row(escape(found["name"]), f"{found['score']:.2f}", ", ".join(f"{edge:.0f}" for edge in found["box"]))
    console = Console()
    console.print(table if answer["detections"] else "nothing was found on this picture")
    console.print(f"answered by {answer['version']}; drawn to {answer['drawn']}", highlight=False)


def status(endpoint: str, platform: Platform) -> dict[str, Any]:
    """Who serves an endpoint, since when and why: the wanted state, and what truly runs."""
    serving = connect(platform).serving
    wanted, seen = serving.read(endpoint), serving.observe(endpoint)
    versions = {
        name: {
            "weight": served.weight,
            "shadow": served.shadow,
            "ready": name in seen and seen[name].ready,
            "reason": seen[name].reason if name in seen else "nobody serves it; next: flywheel serve",
            "release": f"{served.release.model} {served.release.version}",
            "package": served.release.package,
            "dataset": served.release.dataset,
        }
        for name, served in wanted.versions.items()
    }
    return {
        "endpoint": endpoint,
        "url": serving.url(endpoint),
        "stable": wanted.stable,
        "since": wanted.since,
        "reason": wanted.reason,
        "generation": wanted.generation,
        "versions": versions,
    }


def show_status(found: dict[str, Any]) -> None:
    """Print the answer of `status` for a person."""
    console = Console(highlight=False, soft_wrap=True)
    if not found["versions"]:
        console.print(f"endpoint {found['endpoint']} has no model yet; next: flywheel run --data path/to/data.yaml")
        return
    console.print(f"[bold]{found['endpoint']}[/] at {found['url'] or 'no address: nobody serves it'}")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
    console.print(f"stable: {found['stable']} since {since}: {escape(found['reason'])}")
    table = Table("version", "traffic", "ready", "release", "package", "data")
    for name, version in found["versions"].items():
        ready = "yes" if version["ready"] else f"no: {version['reason']}"
        traffic = "copies" if version["shadow"] else f"{version['weight']} %"
        table.add_row(name, traffic, ready, version["release"], version["package"], version["dataset"])
    console.print(table)
