"""One cluster for a whole test run, a namespace for each test; nothing is left of either."""

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime.adapters.kserve.build import ENDPOINT, ROUTE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.kubernetes import connect
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.components.runtime.wiring import connect as connect_world
from kubernetes import client

from tests import servers
from tests.waiting import wait_for

from . import images
from .control import GATEWAY, NODE_IP, ControlPlane
from .knative import Knative
from .node import Node
from .places import Places
from .prometheus import ADDRESS, Prometheus

HOW = "no cluster: FLYWHEEL_CLUSTER=1 brings one up here (Linux, Go, root for pods), KUBECONFIG gives another"
OWN = os.environ.get("FLYWHEEL_CLUSTER") == "1"
SERVE_IMAGE = f"{images.REGISTRY}/serve@sha256:{'0' * 64}"
"""One that is in no registry."""
REPO, ENVIRONMENT = Path(__file__).parents[2], Path(sys.prefix)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a cluster are marked, skipped without one, and get the time that pods and images take.

    They come last: a cluster takes its share of the machine as long as it is up. Those of pipelines, which take
    longest, come first, so that of two processes none is left with them in the end.
    """
    here = OWN or os.environ.get("KUBECONFIG")
    items.sort(key=lambda item: (_on_a_cluster(item), "/pipelines/" not in item.nodeid))
    for item in filter(_on_a_cluster, items):
        item.add_marker("cluster")
        item.add_marker(pytest.mark.timeout(900) if here else pytest.mark.skip(reason=HOW))


def _on_a_cluster(item: pytest.Item) -> bool:
    wanted = {"cluster", "plane"} & set(getattr(item, "fixturenames", ()))
    return bool(wanted or item.get_closest_marker("cluster"))


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """The control plane of this machine's own cluster; what was up before stays up."""
    if not OWN:
        pytest.skip(HOW)
    plane = ControlPlane(Places.usual(), print)
    found = plane.processes.find("kube-apiserver") is not None

    def wipe() -> None:
        Prometheus(plane).down(wipe=True)
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


@contextmanager
def a_namespace(cluster: client.ApiClient) -> Iterator[str]:
    """A namespace, ready to be used; it is deleted at the end, which takes its time."""
    core, name = client.CoreV1Api(cluster), f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    wait_for(lambda: bool(core.list_namespaced_service_account(name).items), 30, "a service account")
    try:
        yield name
    finally:
        core.delete_namespace(name)


@pytest.fixture
def namespace(cluster: client.ApiClient) -> Iterator[str]:
    """A namespace of the test's own."""
    with a_namespace(cluster) as name:
        yield name


@pytest.fixture(scope="session")
def node(plane: ControlPlane) -> Node:
    """A node for real pods."""
    if os.geteuid() != 0:
        pytest.skip("pods need root")
    node = Node(plane)
    node.up()
    return node


@pytest.fixture(scope="session")
def prometheus(plane: ControlPlane, node: Node) -> Prometheus:
    """It scrapes every model server, each EVERY_S seconds."""
    server = Prometheus(plane)
    server.up()
    return server


@pytest.fixture(scope="session")
def knative(plane: ControlPlane) -> Iterator[Knative]:
    """Knative's controller, which only its own tests need; what was up before stays up."""
    knative, found = Knative(plane), plane.processes.find("knative")
    knative.up()
    yield knative
    if not found:
        knative.down()


@pytest.fixture(scope="session")
def train_image(node: Node) -> str:
    """An image whose packages are this environment's, mounted: with torch in it, one takes too long to build."""
    return environment(node.places)


@pytest.fixture(scope="session")
def serve_image(node: Node) -> str:
    """The real one."""
    return images.built(node.places, "serve")


@pytest.fixture(scope="session")
def s3(node: Node) -> Iterator[servers.S3]:
    """An S3 server that pods reach, with a bucket."""
    with servers.s3(NODE_IP) as server:
        yield server


@pytest.fixture(scope="session")
def tracking(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an MLflow that pods reach."""
    with servers.mlflow(tmp_path_factory.mktemp("mlflow"), NODE_IP) as url:
        yield url


def environment(places: Places) -> str:
    """The image whose packages are this environment's."""
    path = f"{ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin"
    return images.mounted(places, {"PATH": path, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"})


def platform_without_pods(namespace: str, mode: str = "standard") -> Platform:
    """A platform whose endpoints can be written, though nothing behind them will run."""
    return Platform.of(
        store="s3://bucket",
        jobs=f"rayjob://{namespace}",
        serving=f"kserve://{namespace}",
        tracking="http://mlflow:5000",
        images={"serve": SERVE_IMAGE},
        gateway={"address": f"http://{GATEWAY}", "mode": mode},
    )


def platform_on(namespace: str, s3: servers.S3, **images: str) -> Platform:
    """A platform on the cluster, with a store and a namespace of its own."""
    secret = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}
    client.CoreV1Api(connect()).create_namespaced_secret(
        namespace, {"metadata": {"name": "store"}, "stringData": secret}
    )
    return Platform.of(
        store=f"s3://{servers.BUCKET}/{namespace}",
        jobs=f"rayjob://{namespace}",
        serving=f"kserve://{namespace}",
        tracking="sqlite://",
        telemetry=f"prometheus+http://{ADDRESS}",
        images=images,
        gateway={"address": f"http://{GATEWAY}"},
        pods={
            "env": {"AWS_ENDPOINT_URL": s3.url, "AWS_DEFAULT_REGION": "us-east-1"},
            "secrets": {"store": sorted(secret)},
            "host_paths": sorted({str(REPO), str(ENVIRONMENT), sys.base_prefix}),
            "head_memory": "2Gi",
            "worker_memory": "2Gi",
            "shared_memory": "256Mi",
            "wait_s": 120,
        },
    )


@pytest.fixture
def cluster_platform(namespace: str, s3: servers.S3, train_image: str) -> Platform:
    """A platform on the cluster that trains."""
    return platform_on(namespace, s3, train=train_image)


@pytest.fixture(scope="module")
def module_world(
    cluster: client.ApiClient, s3: servers.S3, serve_image: str, prometheus: Prometheus
) -> Iterator[World]:
    """A namespace with a platform of its own, for all rollouts of a module."""
    with a_namespace(cluster) as namespace:
        yield connect_world(platform_on(namespace, s3, serve=serve_image))


@pytest.fixture
def served(module_world: World) -> Iterator[World]:
    """The module's platform; the endpoints of a test end with it, as the node is small."""
    yield module_world
    assert isinstance(module_world.serving, KServe)
    for route in module_world.serving.objects.list(ROUTE, ENDPOINT):
        module_world.serving.objects.delete(ROUTE, route["metadata"]["name"])
