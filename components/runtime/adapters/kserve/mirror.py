"""How a gateway copies requests: tried beside the endpoint, as a gateway may accept what it then fails at."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ...config import Gateway
from ...errors import PlatformError, UserError
from ...ports import ANSWERED_BY
from ..kubernetes import Objects
from . import build
from .build import COPIER, MIRROR, ROUTE, TRAEFIK

TRIAL_S = 4.0
"""Seconds that a gateway has to show that it copies in one way. All ways together take less than a rollout's lease."""
ASKS = 10
REFUSED = {MIRROR: ("POST", 400), TRAEFIK: ("GET", 405)}
"""The requests of a trial, and how a model server refuses them: each way has a code by which its copies are counted."""


def way_of(route: Mapping[str, Any]) -> str:
    """How a route has requests copied, if it does."""
    backends = (route["spec"].get("rules") or [{}])[-1].get("backendRefs") or []
    return TRAEFIK if any(backend.get("kind") == TRAEFIK for backend in backends) else MIRROR


def tried(
    objects: Objects, gateway: Gateway, namespace: str, endpoint: str, stable: str, owner: Mapping[str, Any]
) -> str:
    """The way in which a gateway copies requests; Traefik's is prepared for them.

    Args:
        stable: The version that answers.
        owner: InferenceService of the version that is to be sent copies; it must be ready.

    Raises:
        UserError: There is none.
    """
    shadow = owner["metadata"]["labels"][build.VERSION]
    for way in (MIRROR, TRAEFIK):
        if way == TRAEFIK and not _prepared(objects, build.copier(endpoint, stable, shadow, owner)):
            break
        route = build.trial(namespace, endpoint, stable, owner, gateway, way)
        with _there_meanwhile(objects, route):
            if _copies(gateway, namespace, endpoint, stable, shadow, way):
                return way
    objects.delete(COPIER, build.copier_name(endpoint, stable, shadow))
    raise UserError(
        f"the gateway at {gateway.address} copies no requests to {shadow}: {MIRROR} and {TRAEFIK} were tried.",
        "take 0 out of canary_steps",
    )


def _prepared(objects: Objects, copier: dict[str, Any]) -> bool:
    """Whether the cluster knows this kind."""
    try:
        objects.create(COPIER, copier)
    except PlatformError:
        return False
    return True


@contextlib.contextmanager
def _there_meanwhile(objects: Objects, route: dict[str, Any]) -> Iterator[None]:
    objects.create(ROUTE, route)  # or of a process that was killed
    try:
        yield
    finally:
        objects.delete(ROUTE, route["metadata"]["name"])


def _copies(gateway: Gateway, namespace: str, endpoint: str, stable: str, shadow: str, way: str) -> bool:
    """Whether requests of a trial are answered by one version and counted by another one."""
    address = gateway.address.rstrip("/")
    asked = f"{address}{build.trial_path(namespace, endpoint, way)}/v2/models/{endpoint}/infer"
    metrics = f"{address}{build.path_of(namespace, endpoint, shadow)}/metrics"
    until, (method, code) = time.monotonic() + TRIAL_S, REFUSED[way]
    with httpx.Client(trust_env=False, timeout=TRIAL_S) as client:
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):  # then it shows nothing
                answers = [client.request(method, asked) for _ in range(ASKS)]
                answered = all((one.status_code, one.headers.get(ANSWERED_BY)) == (code, stable) for one in answers)
                if answered and any(_refused(client.get(metrics).text, code) for _ in range(ASKS)):
                    return True
            time.sleep(0.1)
    return False


def _refused(metrics: str, code: int) -> bool:
    """Whether a model server has counted a refusal with this code."""
    return any(
        sample.name == "flywheel_requests_total" and sample.labels.get("code") == str(code) and sample.value > 0
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    )
