"""Counts from Prometheus: its real engine answers our queries (promtool); what it says amiss decides nothing."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.rollout.evidence import Look, Replayed, judge, since
from kfp_flywheel.components.runtime.adapters.prometheus.telemetry import Growth, Prometheus, Rounds, query_of
from kfp_flywheel.components.runtime.config import Rollout
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.ports import Counts

from tests.servers import free_port

RULES = Path(__file__).parents[2] / "manifests/components/monitoring/monitoring.yaml"
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt-get install prometheus")
OWN = '{namespace="team",model_name="detector",pod="p",version="v1"'
SERIES = {
    f'flywheel_requests_total{OWN},code="200"}}': "0+60x10",
    f'flywheel_requests_total{OWN},code="500"}}': "0+1x10",
    f'flywheel_requests_total{OWN},code="400"}}': "0+9x10",
    f"flywheel_failures_total{OWN}}}": "0+1x10",
    f'flywheel_request_seconds_bucket{OWN},le="0.01"}}': "0+50x10",
    f'flywheel_request_seconds_bucket{OWN},le="+Inf"}}': "0+61x10",
    'flywheel_requests_total{namespace="other",model_name="detector",pod="p",version="v1",code="200"}': "0+7x10",
    'flywheel_requests_total{namespace="team",model_name="another",pod="p",version="v1",code="200"}': "0+7x10",
    **{
        f'traefik_service_requests_total{{code="{code}",service="team-{name}-predictor-http-80@k"}}': f"0+{count}x10"
        for name, code, count in (
            ("detector-v2", 200, 6),
            ("detector-v2", 502, 2),
            ("detector-v2", 404, 5),
            ("detector-b-v2", 200, 5),
        )
    },
    **{
        f'istio_requests_total{{reporter="{reporter}",destination_service_namespace="team",'
        f'destination_service_name="detector-v3-predictor",response_code="{code}"}}': f"0+{count}x10"
        for reporter, code, count in (
            ("source", 200, 4),
            ("source", 503, 3),
            ("source", 0, 2),
            ("source", 404, 9),
            ("destination", 200, 8),
        )
    },
}


def ask(dialect: str, folder: Path) -> None:
    """Have Prometheus' own engine add up by version what there is after ten minutes, against what is expected."""
    document = {
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in SERIES.items()],
                "promql_expr_test": [
                    {
                        "expr": f"sum by (version, counted, le) ({query_of(dialect, 'team', 'detector')})",
                        "eval_time": "10m",
                        "exp_samples": [
                            {"labels": _labels(version, kind), "value": value}
                            for version, kinds in EXPECTED[dialect].items()
                            for kind, value in kinds.items()
                        ],
                    }
                ],
            }
        ]
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(["promtool", "test", "rules", str(folder / "test.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _labels(version: str, kind: str) -> str:
    name, _, le = kind.partition(" ")
    labels = {"version": version, "counted": name, "le": le}
    return "{" + ",".join(f'{label}="{value}"' for label, value in labels.items() if value) + "}"


TIMES = {"within 0.01": 500.0, "within +Inf": 610.0}
ONCE = 600.0
"""When each series was scraped last."""
EXPECTED: dict[str, dict[str, dict[str, float]]] = {
    "predictor": {"v1": {"requests": 610.0, "failures": 10.0, "scraped": 3 * ONCE, **TIMES}},
    "traefik": {
        "v1": {"scraped +Inf": ONCE, **TIMES},
        "v2": {"requests": 80.0, "failures": 20.0},
        "": {"scraped": 3 * ONCE},
    },
    "istio": {
        "v1": {"scraped +Inf": ONCE, **TIMES},
        "v3": {"requests": 90.0, "failures": 50.0},
        "": {"scraped": 4 * ONCE},
    },
}


@needs_promtool
@pytest.mark.parametrize("dialect", EXPECTED)
def test_each_dialect_counts_its_own_and_leaves_the_rest(dialect: str, tmp_path: Path) -> None:
    ask(dialect, tmp_path)


@needs_promtool
def test_a_wrong_count_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPECTED["predictor"]["v1"], "requests", 700.0)
    with pytest.raises(AssertionError, match=r"got:.* 6.1E\+02"):
        ask("predictor", tmp_path)


@needs_promtool
def test_the_recording_rules_say_how_a_version_does(tmp_path: Path) -> None:
    (rules,) = [one for one in yaml.safe_load_all(RULES.read_text()) if one["kind"] == "PrometheusRule"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    one = '{namespace="team", model_name="detector", version="v1"}'

    def expects(name: str, value: float) -> dict[str, Any]:
        return {"expr": name, "eval_time": "5m", "exp_samples": [{"labels": f"{name}{one}", "value": value}]}

    ours = {
        name: values.replace("x10", "x30") for name, values in SERIES.items() if 'team",model_name="detector"' in name
    }
    document = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in ours.items()],
                "promql_expr_test": [
                    expects("flywheel:requests:rate1m", 61 / 15),
                    expects("flywheel:failures:ratio1m", 1 / 61),
                    expects("flywheel:seconds:p50", 0.0061),
                ],
                "alert_rule_test": [
                    {"eval_time": "5m", "alertname": AWAY, "exp_alerts": [{"exp_annotations": {"summary": SUMMARY}}]}
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run(["promtool", "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


AWAY = "FlywheelReconcilerAway"
SUMMARY = "No reconciler acts. What is served goes on; a canary whose rollout is killed would stay."


def test_a_dialect_that_nobody_knows_is_named() -> None:
    with pytest.raises(UserError, match="dialect 'nginx' is not known: predictor, traefik, istio are"):
        query_of("nginx", "team", "detector")


# Counters of pods: (increase, begins anew before it) for each scrape, None where the scrape failed.
PODS = st.lists(
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 50), st.booleans())), min_size=1, max_size=8), max_size=4
)


@given(pods=PODS)
def test_whatever_begins_anew_nothing_is_counted_twice_or_below_zero(
    pods: list[list[tuple[int, bool] | None]],
) -> None:
    """A counter that began anew and is beyond its former value already looks as if it went on: that much is lost."""
    growth, values, least, most = Growth(), [0] * len(pods), 0, 0
    before = 0.0
    for at in range(max(map(len, pods), default=0)):
        samples = []
        for number, scrapes in enumerate(pods):
            scrape = scrapes[at] if at < len(scrapes) else None
            if scrape is None:
                continue
            more, anew = scrape
            old = values[number]
            values[number] = more if anew else old + more
            most += more
            least += more if not anew or more < old else more - old
            samples.append(({"counted": "requests", "version": "v1", "pod": str(number)}, float(values[number])))
        growth.add(samples)
        total = growth.total["requests", "v1", ""]
        assert before <= total == least <= most
        before = total


@dataclass
class Pod:
    """One with a counter, which is scraped at moments of its own."""

    name: str
    version: str
    first: int
    every: int
    requests: list[int]
    """By second."""
    failures: list[int]

    def samples(self, now: int) -> Iterator[tuple[dict[str, str], float]]:
        """What Prometheus knows of it."""
        if now < self.first:
            return
        at = now - (now - self.first) % self.every
        for kind, value in (
            ("requests", sum(self.requests[:at])),
            ("failures", sum(self.failures[:at])),
            ("scraped", at),
        ):
            yield {"counted": kind, "version": self.version, "pod": self.name}, float(value)


def told(pods: list[Pod], seconds: int) -> list[dict[str, Counts]]:
    """What is told of them each second."""
    telemetry, answers = Prometheus("prometheus+http://127.0.0.1:1", "team"), []
    with pytest.MonkeyPatch.context() as patch:
        for now in range(max(min(pod.first for pod in pods), 1), seconds):
            patch.setattr(telemetry, "_ask", lambda _, now=now: [one for pod in pods for one in pod.samples(now)])
            answers.append(telemetry.counts("detector"))
    return answers


@given(every=st.integers(1, 8), firsts=st.lists(st.integers(0, 7), min_size=2, max_size=6))
def test_each_news_is_of_all_pods_for_the_same_time(every: int, firsts: list[int]) -> None:
    seconds = 60
    pods = [
        Pod(str(number), f"v{number % 2}", first % every, every, [3] * seconds, [0] * seconds)
        for number, first in enumerate(firsts)
    ]
    totals = [{version: counts.requests for version, counts in each.items()} for each in told(pods, seconds)]
    whole = [after for before, after in pairwise(totals) if after != before and len(after) == 2][1:]
    assert len(whole) >= seconds // every - 4
    for before, after in pairwise(whole):
        for version in after:
            count = sum(pod.version == version for pod in pods)
            assert after[version] - before[version] == 3 * every * count


def decided(first: int, seed: int) -> str:
    """What becomes of a canary that fails every fifth request, when it and the stable are scraped each five seconds."""
    rng, seconds, looks = np.random.default_rng(seed), 120, list[Look]()
    asked = [rng.binomial(20, share, seconds) for share in (0.1, 0.9)]
    canary = Pod("b", "v2", first, 5, asked[0].tolist(), rng.binomial(asked[0], 0.2).tolist())
    stable = Pod("a", "v1", 0, 5, asked[1].tolist(), [0] * seconds)
    for before, now in pairwise(told([stable, canary], seconds)):
        mine, theirs = (since(now.get(name, Counts()), before.get(name, Counts())) for name in ("v2", "v1"))
        looks.append(Look(at=0.0, weight=10, canary=mine, stable=theirs))
        found = judge(Counts(), looks, Replayed(), Rollout(canary_steps="10,100", step_requests=10_000))
        if found.decision != "go":
            return found.decision
    return "undecided"


@pytest.mark.parametrize("first", range(5))
def test_a_bad_canary_is_found_whenever_its_pods_are_scraped(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the news of one version at a time it is not, as if the other one had been away."""
    assert [decided(first, seed) for seed in range(5)] == ["rollback"] * 5
    monkeypatch.setattr(Rounds, "complete", lambda *_: True)
    assert [decided(first, seed) for seed in range(5)] == ["undecided" if first else "rollback"] * 5


class Scripted(BaseHTTPRequestHandler):
    """Answers as it is told."""

    status, body = 200, b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody listens."""


@pytest.fixture
def telemetry() -> Iterator[Prometheus]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    Thread(target=server.serve_forever).start()
    try:
        yield Prometheus(f"prometheus+http://127.0.0.1:{server.server_port}", "team")
    finally:
        server.shutdown()
        server.server_close()


def answer(*samples: tuple[dict[str, str], str]) -> bytes:
    result = [{"metric": labels, "value": [1.0, value]} for labels, value in samples]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


def test_counts_are_put_together(telemetry: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"version": "v1", "pod": "a"}
    samples = [
        ({**one, "counted": "requests", "code": "200"}, "10"),
        ({**one, "counted": "requests", "code": "500"}, "2"),
        ({**one, "counted": "failures"}, "1"),
        ({**one, "counted": "within", "le": "0.01"}, "9"),
        ({**one, "counted": "within", "le": "+Inf"}, "12"),
        ({**one, "pod": "b", "counted": "requests", "code": "200"}, "5"),
    ]
    monkeypatch.setattr(Scripted, "body", answer(*samples))
    expected = Counts(requests=17, failures=1, within={"0.01": 9, "+Inf": 12})
    assert telemetry.counts("detector") == {"v1": expected}
    monkeypatch.setattr(Scripted, "body", answer(({**one, "counted": "requests", "code": "200"}, "3")))
    assert telemetry.counts("detector") == {"v1": expected.but(requests=20)}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, answer(), "has no series of endpoint detector in team: nobody scrapes"),
        (400, b'{"status": "error", "error": "parse error"}', "refuses the query: parse error"),
        (200, b"<html>", "answers 200, and not as Prometheus does"),
        (503, b"no", "answers 503, and not as Prometheus does"),
        (200, b'{"status": "success", "data": {"result": [{"metric": {}}]}}', "not as Prometheus does"),
        (200, b"[]", "not as Prometheus does"),
    ],
)
def test_silence_and_nonsense_are_errors(
    telemetry: Prometheus, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, said: str
) -> None:
    monkeypatch.setattr(Scripted, "status", status)
    monkeypatch.setattr(Scripted, "body", body)
    with pytest.raises(PlatformError, match=said):
        telemetry.counts("detector")


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(PlatformError, match="does not answer"):
        Prometheus(f"prometheus+http://127.0.0.1:{free_port()}", "team").counts("detector")
