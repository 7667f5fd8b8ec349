"""The reconciler on a real API server with KServe's controller; in Knative's mode: test_knative.py."""

from pathlib import Path
from typing import Any

import pytest
from kfp_flywheel.components.runtime.adapters.kserve.build import ROUTE, SERVICE
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.ports import Lease, Served
from kfp_flywheel.components.serving.keeper import Keeper
from kubernetes import client

from tests.releases import release, stable
from tests.waiting import wait_for

from .fixtures import platform_without_pods


def test_a_canary_whose_lease_expired_goes_and_what_it_left_too(
    cluster: client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    serving = KServe(platform_without_pods(namespace))
    first = serving.write(stable(serving.read("detector"), "1"))
    canary = {"v2": Served(release=release("2", "q"), weight=0)}
    serving.write(first.but(versions=first.versions | canary, lease=Lease(owner="run", seconds=15, renewed=1)))
    said, now = list[str](), [0.0]
    keeper = Keeper(serving, LocalStore(f"file://{tmp_path}"), lambda told: None, said.append, lambda: now[0])

    def routes() -> dict[str, Any]:
        return {"detector": serving.objects.get(ROUTE, "detector")}

    keeper.look(routes())
    now[0] += 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "_tidy", lambda state, former: None)  # as if it were killed
        keeper.look(routes())
    assert said == ["detector: v2 was taken back: run run did not renew its lease of 15 s."]
    for _ in range(2):
        keeper.settle(routes())
        now[0] += 6
    assert said[1:] == ["detector: v2 is left over"]
    wait_for(lambda: serving.objects.get(SERVICE, "detector-v2") is None, 20)
