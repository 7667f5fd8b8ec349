"""What the gateway of this machine has counted."""

from collections.abc import Iterator
from functools import cached_property

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ...errors import PlatformError
from ...ports import Counts
from .serving import LocalServing

REQUESTS, FAILURES = "flywheel_gateway_requests", "flywheel_gateway_failures"
SECONDS = "flywheel_gateway_request_seconds"
NOBODY = "none"
"""Stands for a version where there was none to ask."""


class LocalTelemetry:
    """`local:///folder`, the one of serving. The counters begin anew with each `flywheel serve`."""

    def __init__(self, uri: str) -> None:
        self._serving = LocalServing(uri)

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(trust_env=False, timeout=5, limits=httpx.Limits(max_keepalive_connections=0))

    def counts(self, endpoint: str) -> dict[str, Counts]:
        url = self._serving.url(endpoint)
        if not url:
            raise PlatformError(f"nobody serves endpoint {endpoint}, so nobody counts its requests.", "flywheel serve")
        try:
            answer = self._client.get(f"{url}/metrics")
        except httpx.HTTPError as error:
            raise PlatformError(
                f"{url}/metrics does not answer: {error or type(error).__name__}.", "flywheel status"
            ) from error
        try:
            families = {family.name: family for family in text_string_to_metric_families(answer.text)}
            return _by_version(families, endpoint)
        except (ValueError, KeyError) as error:
            raise PlatformError(
                f"{url}/metrics answers {answer.status_code} without the metrics of a gateway: {error}.",
                "flywheel status",
            ) from error


def _by_version(families: dict[str, Metric], endpoint: str) -> dict[str, Counts]:
    requests: dict[str, int] = {}
    failures: dict[str, int] = {}
    within: dict[str, dict[str, int]] = {}
    for version, labels, value in _samples(families[REQUESTS], "_total", endpoint):
        if not labels["code"].startswith("4"):
            requests[version] = requests.get(version, 0) + value
    for version, _, value in _samples(families[FAILURES], "_total", endpoint):
        failures[version] = value
    for version, labels, value in _samples(families[SECONDS], "_bucket", endpoint):
        within.setdefault(version, {})[labels["le"]] = value
    return {
        version: Counts(requests=count, failures=failures[version], within=within[version])
        for version, count in requests.items()
    }


def _samples(family: Metric, suffix: str, endpoint: str) -> Iterator[tuple[str, dict[str, str], int]]:
    for sample in family.samples:
        labels = sample.labels
        if sample.name == family.name + suffix and labels["endpoint"] == endpoint and labels["version"] != NOBODY:
            yield labels["version"], labels, int(sample.value)
