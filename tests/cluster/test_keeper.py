"""The reconciler on a real API server: what a killed rollout leaves is put right, by one of them, whoever dies."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE, SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.reconciler import deployment
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.leader import LEASE
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.ports import EndpointState, Lease, Served
from kfp_flywheel.components.runtime.wiring import connect
from kubernetes import client

from tests.releases import release, stable
from tests.waiting import wait_for

from .control import ControlPlane
from .fixtures import REPO, a_namespace, platform_on, platform_without_pods

MODULE = "kfp_flywheel.components.serving.keeper"
SECONDS = 2.0
PATIENT = 6.0
"""Of a lease that is renewed in time, however busy this machine is."""


@pytest.fixture
def there(cluster: client.ApiClient, namespace: str, tmp_path: Path) -> KServe:
    """KServe in a namespace; store and registry are folders here."""
    platform = platform_without_pods(namespace).but(
        store=f"file://{tmp_path}/store", tracking=f"sqlite:///{tmp_path}/mlflow.db"
    )
    (tmp_path / "store").mkdir()
    return KServe(platform)


class Keeper:
    """A reconciler as a process."""

    def __init__(self, platform: Platform, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", MODULE, "--port=0", f"--platform={platform.line()}"]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def says(self, text: str) -> bool:
        assert self.process.poll() in (None, -signal.SIGKILL), self.log.read_text()
        return text in self.log.read_text()


@contextmanager
def keeping(platform: Platform, folder: Path, name: str = "keeper") -> Iterator[Keeper]:
    keeper = Keeper(platform, folder / f"{name}.log")
    try:
        yield keeper
    finally:
        keeper.process.terminate()
        assert keeper.process.wait(20) in (0, -signal.SIGKILL), keeper.log.read_text()


def both(state: EndpointState, seconds: float = SECONDS) -> EndpointState:
    """The state with version 2 as a canary, whose rollout will not be heard of again."""
    versions = {
        "v1": state.versions["v1"].but(weight=90),
        "v2": Served(release=release("2", "q"), weight=10),
    }
    lease = Lease(owner="run-2", seconds=seconds, renewed=1.0)
    return state.but(versions=versions, lease=lease, changed=time.time(), by="run-2", reason="v2 has 10 %.")


def begun(there: KServe, endpoint: str = "detector") -> EndpointState:
    return there.write(stable(there.read(endpoint), "1").but(since=time.time(), reason="the first"))


def weights(there: KServe, endpoint: str = "detector") -> dict[str, int]:
    return {name: served.weight for name, served in there.read(endpoint).versions.items()}


def services(there: KServe, endpoint: str = "detector") -> list[str]:
    return sorted(item["metadata"]["name"] for item in there.objects.list(SERVICE, f"flywheel/endpoint={endpoint}"))


def within(seconds: float, ready: Callable[[], bool]) -> None:
    wait_for(ready, seconds)


def test_a_canary_whose_rollout_is_gone_is_taken_back_and_the_ledger_says_so(there: KServe, tmp_path: Path) -> None:
    state = begun(there)
    with keeping(there.platform, tmp_path) as keeper:
        wait_for(lambda: keeper.says("acts now"))
        there.write(both(state))
        within(SECONDS + 4, lambda: weights(there) == {"v1": 100})
        wait_for(lambda: services(there) == ["detector-v1"], 20)
    found = there.read("detector")
    assert (found.by, found.lease) == ("flywheel serve", None)
    assert found.reason == "v2 was taken back: run run-2 did not renew its lease of 2 s."
    assert ledger.history(connect(there.platform).store, "detector")[-1].reason == found.reason


def test_one_that_is_renewed_stays(there: KServe, tmp_path: Path) -> None:
    state = there.write(both(begun(there), PATIENT))
    with keeping(there.platform, tmp_path) as keeper:
        wait_for(lambda: keeper.says("acts now"))
        end = time.monotonic() + 2 * PATIENT
        while time.monotonic() < end:
            assert state.lease is not None
            state = there.write(state.but(lease=state.lease.but(renewed=time.time())))
            time.sleep(PATIENT / 10)  # a rollout at work
        assert weights(there) == {"v1": 90, "v2": 10}


def test_an_endpoint_that_was_edited_by_hand_is_left_to_people(there: KServe, tmp_path: Path) -> None:
    there.write(both(begun(there)))
    rules = there.objects.get(ROUTE, "detector")["spec"]["rules"]  # type: ignore[index]
    rules[-1]["backendRefs"][0]["weight"], rules[-1]["backendRefs"][1]["weight"] = 70, 30
    there.objects.api.patch_namespaced_custom_object(
        *there.objects.at(ROUTE), "detector", {"spec": {"rules": rules}}, field_manager="kubectl-edit"
    )
    begun(there, "other")
    with keeping(there.platform, tmp_path) as keeper:
        wait_for(lambda: keeper.says("acts now"))
        other = there.write(both(there.read("other")))
        wait_for(lambda: there.read("other").lease is None, 20)
        assert other.lease is not None
        assert weights(there) == {"v1": 70, "v2": 30}
        assert "edited by kubectl-edit" in there.read("detector").edited


def test_what_a_killed_write_left_is_put_right(there: KServe, tmp_path: Path) -> None:
    state = there.write(both(begun(there), seconds=600))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there, "_tidy", lambda *given: None)
        there.write(state.but(versions={"v1": state.versions["v1"].but(weight=100)}, lease=None))
    with keeping(there.platform, tmp_path) as keeper:
        wait_for(lambda: services(there) == ["detector-v1"], 30)
        wait_for(lambda: keeper.says("detector: v2 is left over"))


def test_a_route_that_is_deleted_ends_the_endpoint_in_the_ledger_too(there: KServe, tmp_path: Path) -> None:
    begun(there)
    store = connect(there.platform).store
    with keeping(there.platform, tmp_path) as keeper:
        wait_for(lambda: keeper.says("acts now"))
        time.sleep(1)  # it must have seen what is deleted
        there.objects.delete(ROUTE, "detector")
        wait_for(lambda: bool(ledger.history(store, "detector")), 30)
        wait_for(lambda: services(there) == [], 30)
    last = ledger.history(store, "detector")[-1]
    assert (last.stable, last.weights, last.reason) == (None, {}, "its HTTPRoute was deleted.")


def test_of_several_one_acts_and_when_it_is_killed_another_one_does(there: KServe, tmp_path: Path) -> None:
    with ExitStack() as stack:
        keepers = [stack.enter_context(keeping(there.platform, tmp_path, str(number))) for number in range(2)]
        wait_for(lambda: any(keeper.says("acts now") for keeper in keepers))
        time.sleep(2)  # the other one had its chance
        (leader,) = [keeper for keeper in keepers if keeper.says("acts now")]
        (other,) = [keeper for keeper in keepers if keeper is not leader]
        leader.process.kill()
        wait_for(lambda: other.says("acts now"), 30)
        state = begun(there)
        there.write(both(state))
        wait_for(lambda: weights(there) == {"v1": 100}, 20)
    assert there.objects.get(LEASE, "flywheel-reconciler")["spec"]["holderIdentity"] == "", "given back"  # type: ignore[index]


@pytest.mark.faults
def test_it_goes_on_when_the_api_server_was_away(plane: ControlPlane, there: KServe, tmp_path: Path) -> None:
    state = begun(there)
    with keeping(there.platform, tmp_path) as keeper:
        wait_for(lambda: keeper.says("acts now"))
        there.write(both(state, seconds=5))
        plane.processes.stop("kube-apiserver")
        time.sleep(3)  # the fault itself
        plane.api_server()
        wait_for(lambda: weights(there) == {"v1": 100}, 60)


def test_the_registry_is_told_who_is_champion(there: KServe, tmp_path: Path) -> None:
    registry = connect(there.platform).mlflow
    registry.create_registered_model("detector")
    for _ in range(2):
        registry.create_model_version("detector", "file:///nowhere")
    begun(there)

    def champion() -> str:
        return str(registry.get_registered_model("detector").aliases.get("champion"))

    with keeping(there.platform, tmp_path):
        wait_for(lambda: champion() == "1")
        there.write(stable(there.read("detector"), "2", "q"))
        wait_for(lambda: champion() == "2")


def test_with_its_rights_and_no_more_it_does_all_that_in_pods(
    plane: ControlPlane, cluster: client.ApiClient, s3: object, train_image: str, tmp_path: Path
) -> None:
    with a_namespace(cluster) as namespace:
        platform = platform_on(namespace, s3, steps=train_image)  # type: ignore[arg-type]
        platform = platform.but(images=platform.images | {"serve": platform_without_pods(namespace).images["serve"]})
        there = KServe(platform)
        mine = ("-n", namespace)
        plane.kubectl("apply", *mine, "-f", str(REPO / "manifests/base/reconciler.yaml"))
        plane.kubectl("apply", *mine, "-f", "-", text=yaml.safe_dump(deployment(platform)))
        plane.kubectl("wait", *mine, "--for=condition=Available", "deployment/flywheel-reconciler", "--timeout=90s")
        there.write(both(begun(there)))
        wait_for(lambda: weights(there) == {"v1": 100}, 60)
        pods = plane.kubectl("get", "pods", *mine, "-l", "app.kubernetes.io/name=flywheel-reconciler", "-o", "name")

        def logs() -> str:
            return "".join(plane.kubectl("logs", *mine, pod) for pod in pods.split())

        wait_for(lambda: "did not renew its lease" in logs(), 30)
        assert "forbidden" not in logs().lower()
