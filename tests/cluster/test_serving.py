"""Model servers in real pods: the image as it is released, packages in an object store, questions by the gateway."""

from pathlib import Path

import pytest
from kfp_flywheel.components.rollout.ready import until_it_answers
from kfp_flywheel.components.rollout.stage import golden_asker
from kfp_flywheel.components.runtime.artifacts import Release
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.serving.client import infer

from tests.releases import with_champion
from tests.tiny import tiny_images, tiny_release


@pytest.fixture
def world(cluster_platform: Platform, serve_image: str) -> World:
    return connect(cluster_platform.but(images=cluster_platform.images | {"serve": serve_image}))


def serve(world: World, release: Release) -> None:
    """Make a release the champion."""
    world.serving.write(with_champion(world.serving.read("detector"), release))


def until(world: World, release: Release, folder: Path, seconds: float = 60) -> str:
    ask = golden_asker(world.store, release, "detector", folder)
    return until_it_answers(world.serving, "detector", f"v{release.version}", release, seconds, ask, print)


def test_a_version_answers_through_the_gateway_as_its_trainer_saw(world: World, tmp_path: Path) -> None:
    first, second = tiny_release(world.store), tiny_release(world.store, version="2", bias=2.0)
    image = tiny_images()[0]
    serve(world, first)
    url = until(world, first, tmp_path / "1")
    assert infer(url, "detector", image).version == "v1"
    assert world.serving.observe("detector")["v1"].ready
    serve(world, second)
    assert until(world, second, tmp_path / "2") == url
    assert infer(url, "detector", image).version == "v2"
