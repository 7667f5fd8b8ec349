"""Who served when: answered from the ledger alone, whatever else the store has lost."""

import contextlib
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime import ledger
from kfp_flywheel.components.runtime.artifacts import Blob, EvalReport, Lineage, Release, Scores
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import EndpointState, Served
from kfp_flywheel.components.runtime.wiring import World
from kfp_flywheel.pipelines import cli
from kfp_flywheel.pipelines.history import moment, serving_at, told

from tests.releases import release

NOON = 1_800_000_000.0


def enter(world: World, generation: int, at: float, *served: tuple[Release, int], reason: str = "because") -> None:
    """The first one is the champion."""
    state = EndpointState(
        endpoint="detector",
        generation=generation,
        stable=f"v{served[0][0].version}" if served else None,
        versions={f"v{each.version}": Served(release=each, weight=weight) for each, weight in served},
        since=at,
        reason=reason,
        by=f"run-{generation}",
    )
    ledger.append(world.store, state)


def report(world: World) -> EvalReport:
    scores = Scores(map50=0.75, map=0.5, class_map50={}, latency_ms=1.0, size_mb=1.0)
    made = EvalReport(
        id="report-2",
        lineage=Lineage(code="c", image="i", run="r"),
        decision="pass",
        reason="Better by 0.1.",
        package="p",
        champion=None,
        dataset="data",
        images=40,
        challenger_scores=scores,
        champion_scores=None,
        checks=(),
        page=Blob(uri="u", sha256="s", size=1),
    )
    keep(world.store, made)
    return made


@pytest.fixture
def past(world: World) -> World:
    """v1 at noon, a canary of v2 a minute later, v2 alone a minute after that; v1's report is lost."""
    one, two = release("1"), release("2").but(report=report(world).id, dataset="data-2")
    enter(world, 1, NOON, (one, 100))
    enter(world, 2, NOON + 60, (one, 90), (two, 10), reason="v2 is tried")
    enter(world, 5, NOON + 120, (two, 100), reason="v2 is not inferior")
    return world


def test_everybody_who_served_is_listed_with_what_the_gate_said(past: World) -> None:
    rows = told("detector", "", past.platform)["served"]
    assert [(row["from"], row["until"]) for row in rows] == [
        (NOON, NOON + 60),
        (NOON + 60, NOON + 120),
        (NOON + 120, None),
    ]
    assert [row["weights"] for row in rows] == [{"v1": 100}, {"v1": 90, "v2": 10}, {"v2": 100}]
    assert [row["release"] for row in rows] == ["detector 1", "detector 1", "detector 2"]
    assert (rows[2]["dataset"], rows[2]["by"], rows[2]["reason"]) == ("data-2", "run-5", "v2 is not inferior")
    assert rows[2]["gate"] == {"report": "report-2", "decision": "pass", "reason": "Better by 0.1.", "map50": 0.75}
    assert rows[0]["gate"]["decision"] == "lost"


@pytest.mark.parametrize(
    ("after_s", "stable", "generation"), [(-1, None, None), (0, "v1", 1), (59, "v1", 1), (60, "v1", 2), (9999, "v2", 5)]
)
def test_who_served_at_a_time(after_s: float, stable: str | None, generation: int | None, past: World) -> None:
    served = told("detector", str(NOON + after_s), past.platform)["served"]
    assert [(row["stable"], row["generation"]) for row in served] == ([(stable, generation)] if stable else [])


def test_a_clock_that_jumped_back_does_not_bring_back_the_past(world: World) -> None:
    enter(world, 1, NOON + 100, (release("1"), 100))
    enter(world, 2, NOON, (release("2"), 100))
    found = serving_at(ledger.history(world.store, "detector"), NOON + 200)
    assert found
    assert found.stable == "v2"


def test_a_report_that_is_damaged_is_no_error(past: World) -> None:
    stored = Path(past.platform.store.removeprefix("file://"), "artifacts", "report-2.json")
    stored.chmod(0o644)
    stored.write_text("torn")
    assert told("detector", "", past.platform)["served"][2]["gate"]["decision"] == "damaged"


def test_times_are_local_or_have_a_zone_or_are_seconds() -> None:
    assert moment("2026-11-21 10:00+01:00") == moment("2026-11-21T09:00:00Z") == 1_795_251_600.0
    assert moment("1795251600.5") == 1_795_251_600.5
    assert moment("2026-11-21 10:00") == time.mktime((2026, 11, 21, 10, 0, 0, 0, 0, -1))
    assert moment("20261121") == moment("2026-11-21")


@given(st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_any_time_with_a_zone_is_read_as_it_was_written(when: datetime, offset_min: int) -> None:
    there = when.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=offset_min)))
    assert moment(there.isoformat()) == pytest.approx(there.timestamp(), abs=1e-5)
    assert moment(f"{there.timestamp():.6f}") == pytest.approx(there.timestamp(), abs=1e-5)


@given(st.text())
def test_whatever_is_typed_is_a_time_or_a_persons_mistake(text: str) -> None:
    with contextlib.suppress(UserError):
        moment(text)


@pytest.mark.parametrize("wrong", ["", "yesterday", "2026", "nan", "99999999999999999999", "2026-13-01"])
def test_what_is_no_time_is_named(wrong: str) -> None:
    with pytest.raises(UserError, match=rf"--at {wrong} is no time.*2026-11-21 10:00"):
        moment(wrong)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.app(["history", *arguments], standalone_mode=False) in (None, 0)
    return capsys.readouterr().out


def test_the_table_shows_it_to_a_person(
    past: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    root = str(Path(past.platform.store.removeprefix("file://")).parent)
    shown = run("--root", root, capsys=capsys)
    for words in ("v1 90 %, v2 10 %", "lost", "pass, mAP50 0.750", "v2 is not inferior", "run-5", "now", "data-2"):
        assert words in shown
    at = json.loads(run("--root", root, "--at", str(NOON), "--json", capsys=capsys))
    assert (at["at"], at["served"][0]["stable"]) == (NOON, "v1")
    assert run("--root", root, "--at", str(NOON - 1), capsys=capsys).startswith("nobody served detector at 20")


def test_nobody_has_served_an_unknown_endpoint(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(Path(platform.store.removeprefix("file://")).parent)
    assert "nobody has served other yet" in run("--root", root, "--endpoint", "other", capsys=capsys)
    assert told("other", "", platform)["served"] == []


def test_after_a_take_back_nobody_serves(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    enter(world, 1, NOON, (release("1"), 100))
    enter(world, 2, NOON + 60, reason="v1 was taken back")
    root = str(Path(world.platform.store.removeprefix("file://")).parent)
    shown = run("--root", root, "--at", str(NOON + 61), capsys=capsys)
    assert "nobody served detector at" in shown
    assert "taken back" in shown
