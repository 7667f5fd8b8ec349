"""Counts of versions as Prometheus has them: cumulative over pods that come and go, whatever begins anew.

Each pod is scraped at a moment of its own. Counts of one moment would often have news of one version only, as if it had
had all of the requests; so there are new ones when each pod was scraped once more.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from math import inf
from string import Template
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml

from ...errors import PlatformError, UserError
from ...ports import Counts

DIALECTS = ("predictor", "traefik", "istio")
KINDS = ("requests", "failures", "within")
SCRAPED = "scraped"
"""When each series was scraped last."""
Series = frozenset[tuple[str, str]]
Group = tuple[str, str, str]
"""Kind, version, and the limit of a time in seconds."""


def query_of(dialect: str, namespace: str, endpoint: str) -> str:
    """The PromQL whose answer is all that there is to know of an endpoint: one question, so that the parts agree.

    Raises:
        UserError: The dialect is not known.
    """
    if dialect not in DIALECTS:
        raise UserError(f"dialect {dialect!r} is not known: {', '.join(DIALECTS)} are.", "correct telemetry")
    queries = yaml.safe_load((files(__package__) / f"{dialect}.yaml").read_text())
    parts = (f'label_replace({queries[kind]}, "counted", "{kind}", "", "")' for kind in (*KINDS, SCRAPED))
    return Template(" or ".join(parts)).safe_substitute(namespace=namespace, endpoint=endpoint)


class Growth:
    """Sums of counters, of which each may begin anew at any time."""

    def __init__(self) -> None:
        self._last: dict[Series, float] = {}
        self.total: defaultdict[Group, float] = defaultdict(float)

    def add(self, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Take in what the series are now: their labels and values. A smaller value than before began at zero."""
        for labels, value in samples:
            series = frozenset(labels.items())
            before = self._last.get(series, 0.0)
            self._last[series] = value
            group = labels["counted"], labels["version"], labels.get("le", "")
            self.total[group] += value if value < before else value - before


class Rounds:
    """Tells when everything that is scraped was scraped once more."""

    def __init__(self) -> None:
        self._before: Mapping[Series, float] = {}

    def complete(self, times: Mapping[Series, float]) -> bool:
        """Whether a round is over: each series that there is now is newer than at the end of the round before."""
        if any(time <= self._before.get(series, -inf) for series, time in times.items()):
            return False
        self._before = times
        return True


class Prometheus:
    """`prometheus+http://HOST:PORT/PATH?dialect=NAME`; the dialect `predictor` without one.

    Args:
        namespace: Of the endpoints.
    """

    def __init__(self, uri: str, namespace: str) -> None:
        parts = urlsplit(uri.removeprefix("prometheus+"))
        self.url = parts._replace(query="").geturl().rstrip("/")
        self.dialect = parse_qs(parts.query).get("dialect", ["predictor"])[0]
        self.namespace = namespace
        self._growth: defaultdict[str, Growth] = defaultdict(Growth)
        self._rounds: defaultdict[str, Rounds] = defaultdict(Rounds)
        self._told: dict[str, dict[str, Counts]] = {}

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(trust_env=False, timeout=5, limits=httpx.Limits(max_keepalive_connections=0))

    def counts(self, endpoint: str) -> dict[str, Counts]:
        answer = self._ask(query_of(self.dialect, self.namespace, endpoint))
        times = {frozenset(labels.items()): value for labels, value in answer if labels["counted"] == SCRAPED}
        growth = self._growth[endpoint]
        growth.add((labels, value) for labels, value in answer if labels["counted"] != SCRAPED)
        if not growth.total:
            raise PlatformError(
                f"{self.url} has no series of endpoint {endpoint} in {self.namespace}: nobody scrapes its versions.",
                "kubectl apply -f manifests/components/monitoring/monitoring.yaml, or look at its targets",
            )
        if self._rounds[endpoint].complete(times):
            self._told[endpoint] = _by_version(growth)
        return self._told[endpoint]

    def targets(self) -> int:
        """How many things in the namespace are scraped, and answer."""
        return len(self._ask(f'up{{namespace="{self.namespace}"}} == 1'))

    def _ask(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        try:
            answer = self._client.post(f"{self.url}/api/v1/query", data={"query": query})
            document = answer.json()
            if document["status"] != "success":
                raise PlatformError(f"{self.url} refuses the query: {document['error']}.", "flywheel doctor")
            return [(found["metric"], float(found["value"][1])) for found in document["data"]["result"]]
        except httpx.HTTPError as error:
            raise PlatformError(
                f"{self.url} does not answer: {error or type(error).__name__}.", "is Prometheus at work there?"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise PlatformError(
                f"{self.url}/api/v1/query answers {answer.status_code}, and not as Prometheus does.",
                "correct telemetry in the platform file",
            ) from error


def _by_version(growth: Growth) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for (kind, version, le), value in growth.total.items():
        old, count = found.get(version, Counts()), round(value)
        if kind == "within":
            found[version] = old.but(within={**old.within, le: count})
        else:
            found[version] = old.but(**{kind: count})
    return found
