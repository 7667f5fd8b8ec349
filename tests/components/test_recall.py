"""A release that was registered is found again by its version."""

from pathlib import Path

import pytest
from kfp_flywheel.components.recall.stage import recall
from kfp_flywheel.components.register.stage import register, release_of
from kfp_flywheel.components.runtime.artifacts import EvalReport, ModelPackage, Release
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.manifests import find, keep
from kfp_flywheel.components.runtime.wiring import World

from tests.canaries import tiny_pair


def registered(world: World) -> list[Release]:
    made = []
    for given in tiny_pair(world.store):
        package = find(world.store, given.package, ModelPackage)
        report = find(world.store, given.report, EvalReport)
        version, _ = register(world.mlflow, "detector", package, report, given.package_uri)
        new = release_of("detector", version, package, report, given.package_uri, given.lineage)
        keep(world.store, new)
        made.append(new)
    return made


def test_a_version_is_found_and_the_highest_one_without_a_number(world: World) -> None:
    one, two = registered(world)
    assert recall(world.mlflow, world.store, "detector", "1") == one
    assert recall(world.mlflow, world.store, "detector", "") == two


def test_what_is_not_there_is_an_error_that_says_what_is(world: World) -> None:
    with pytest.raises(UserError, match=r"model detector has no version at all; there are: none"):
        recall(world.mlflow, world.store, "detector", "")
    registered(world)
    with pytest.raises(UserError, match=r"model detector has no version 9; there are: 1, 2"):
        recall(world.mlflow, world.store, "detector", "9")
    world.mlflow.create_model_version("detector", world.store.root)
    with pytest.raises(UserError, match=r"version 3 of detector lacks the tag flywheel.package"):
        recall(world.mlflow, world.store, "detector", "3")


def test_a_release_that_the_store_lost_is_said(world: World) -> None:
    one, _ = registered(world)

    Path(world.store.root.removeprefix("file://"), f"artifacts/{one.id}.json").unlink()
    with pytest.raises(PlatformError, match=one.id):
        recall(world.mlflow, world.store, "detector", "1")
