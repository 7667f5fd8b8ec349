"""Fixtures that more than one test file needs: a platform in a temporary folder, and data sets."""

import os
import signal
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.wiring import World, connect

pytest_plugins = ["tests.cluster.fixtures"]


def pytest_configure() -> None:
    """Hear Ctrl-C: what a shell begins in the background ignores it, and so would all that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kfp") and not os.environ.get("FLYWHEEL_KFP_HOST"):
        pytest.skip("no Kubeflow Pipelines: FLYWHEEL_KFP_HOST=http://HOST:PORT names one")


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform.local(tmp_path / "flywheel")


@pytest.fixture
def world(platform: Platform) -> World:
    return connect(platform)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of a small digits data set: 24 training, 8 validation and 40 test images of 96 px. Read only."""
    from kfp_flywheel.pipelines.demo.digits import write

    return write(tmp_path_factory.mktemp("digits"), {"train": 24, "val": 8, "test": 40}, size=96)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of a data set that a small detector learns in seconds. Read only."""
    from tests.shapes import write

    return write(tmp_path_factory.mktemp("shapes"), {"train": 120, "val": 16, "test": 48})
