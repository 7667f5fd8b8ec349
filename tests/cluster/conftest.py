"""One cluster for a whole test run, a namespace for each test; nothing is left of either."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime.adapters.kubernetes import connect
from kubernetes import client

from .control import ControlPlane
from .node import Node
from .places import Places
from .processes import wait

HOW = "no cluster: FLYWHEEL_CLUSTER=1 brings one up on this machine (Linux, Go, root for pods), or give KUBECONFIG"
OWN = os.environ.get("FLYWHEEL_CLUSTER") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if OWN or os.environ.get("KUBECONFIG"):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=HOW))


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """The control plane of this machine's own cluster; what was up before stays up."""
    if not OWN:
        pytest.skip("needs a cluster whose processes can be killed: FLYWHEEL_CLUSTER=1")
    plane = ControlPlane(Places.usual(), print)
    found = plane.processes.find("kube-apiserver") is not None

    def wipe() -> None:
        Node(plane).down()
        plane.down(wipe=True)

    try:
        if not found:
            wipe()  # what a killed one left
        plane.up()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(plane.places.kubeconfig))
            yield plane
    finally:
        if not found:
            wipe()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> client.ApiClient:
    """The API of the cluster that there is."""
    if OWN:
        request.getfixturevalue("plane")
    return connect()


@pytest.fixture
def namespace(cluster: client.ApiClient) -> Iterator[str]:
    """A namespace, ready to be used; it is deleted at the end, which takes its time."""
    core, name = client.CoreV1Api(cluster), f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    wait("a service account", lambda: bool(core.list_namespaced_service_account(name).items), 30)
    yield name
    core.delete_namespace(name)
