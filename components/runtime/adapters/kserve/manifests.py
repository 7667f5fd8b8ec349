"""An endpoint as Git has it: the objects of the cluster, without what only a cluster can know. No cluster is asked."""

from typing import Any

from ...config import Platform
from ...errors import UserError
from ...ports import EndpointState
from . import build
from .build import FORMER, ROUTE, SERVICE, STATE, STOP


def manifests_of(platform: Platform, state: EndpointState) -> dict[str, dict[str, Any]]:
    """The files of an endpoint, by name: what an empty cluster needs so that the champion serves alone.

    A canary, a lease and an edit by hand are left out: they are of the cluster as it is now.

    Raises:
        UserError: The endpoint has no champion, or the image of its servers is named by no digest.
    """
    if state.stable is None:
        raise UserError(f"endpoint {state.endpoint} has no champion.", "flywheel rollout --version N")
    assert platform.gateway is not None, "the platform's own check"
    namespace = platform.serving_namespace
    served = state.versions[state.stable].alone()
    alone = state.but(versions={state.stable: served}, lease=None, edited="")
    runtime, service = build.server(platform, state.endpoint, state.stable, served)
    route = build.divided(build.route(namespace, state.endpoint, platform.gateway), namespace, alone, "")
    made = {"servingruntime.yaml": runtime, "inferenceservice.yaml": service, "httproute.yaml": route}
    listed = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": list(made)}
    return made | {"kustomization.yaml": listed}


def left_to_the_cluster() -> dict[str, Any]:
    """What rollouts change and Git must not put back, as the spec of an Application of Argo CD says it.

    It is about objects that exist: one that is missing is made as Git has it.
    """
    of_route = ["/spec/rules", *(_pointer(name) for name in (STATE, FORMER))]
    return {
        "ignoreDifferences": [
            {"group": ROUTE.group, "kind": "HTTPRoute", "jsonPointers": of_route},
            {"group": SERVICE.group, "kind": "InferenceService", "jsonPointers": [_pointer(STOP)]},
        ],
        "syncPolicy": {"syncOptions": ["RespectIgnoreDifferences=true"]},
    }


def _pointer(annotation: str) -> str:
    """An annotation as a JSON pointer (RFC 6901)."""
    return f"/metadata/annotations/{annotation.replace('~', '~0').replace('/', '~1')}"
