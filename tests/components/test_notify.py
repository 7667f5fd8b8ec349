"""What a person is told of a run: by the steps' records alone, once, and whatever happens on the way."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from kfp_flywheel.components.notify.stage import About, compose, deliver, run
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.artifacts import Blob, Lineage, MonitorReport
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.manifests import keep
from kfp_flywheel.components.runtime.ports import Notice
from kfp_flywheel.components.runtime.step import Outcome, StepRecord, run_records, step
from kfp_flywheel.components.runtime.wiring import World

STEPS = ("resolve", "ingest", "train", "evaluate", "rollout")
ABOUT = About("flywheel", "detector", "run-1", STEPS)
NOON = 1_800_000_000.0


def record(name: str, sentence: str, outcome: Outcome = "done", started: float = NOON) -> StepRecord:
    return StepRecord(step=name, started=started, seconds=1.0, outcome=outcome, sentence=sentence)


def of(*records: StepRecord, state: str = "SUCCEEDED") -> Notice:
    notice = compose(ABOUT, records, state)
    assert notice is not None
    return notice


def test_a_failed_step_is_named_with_its_reason_and_the_next_command() -> None:
    told = of(
        record("resolve", "No champion."),
        record("ingest", "source x does not exist. Next: ls x", "failed"),
        state="FAILED",
    )
    assert (told.level, told.title) == ("warning", "flywheel of detector: ingest failed")
    assert (told.text, told.next) == ("source x does not exist.", "ls x")


def test_a_failure_without_a_remedy_names_the_log() -> None:
    told = of(record("train", "division by zero", "failed"), state="FAILED")
    assert (told.text, told.next) == ("division by zero", "read the log of train in run run-1")


def test_a_step_that_died_is_named_though_it_left_no_word() -> None:
    told = of(record("resolve", "No champion."), record("ingest", "9 images."), state="FAILED")
    assert told.title == "flywheel of detector: train failed"
    assert told.text.startswith("train ended without a word: killed, out of memory, or never started.")
    assert "Before it, ingest: 9 images." in told.text
    assert "run it again" in told.next


def test_a_run_whose_branch_was_not_taken_did_not_fail() -> None:
    """Kubeflow Pipelines calls it RUNNING in the end, as one whose step was killed."""
    judged = record("evaluate", "fail: mAP50 0.044 is below the limit 0.300.", started=NOON + 1)
    before = [record(name, "") for name in STEPS[:3]]
    assert of(*before, judged.but(ends=True), state="RUNNING").title == "flywheel of detector: evaluate says fail"
    assert "rollout ended without a word" in of(*before, judged, state="RUNNING").text
    assert (
        "is done" in of(*(record(name, "", started=NOON + at) for at, name in enumerate(STEPS)), state="RUNNING").title
    )
    assert of(record("evaluate", "no", "failed").but(ends=True), state="RUNNING").title.endswith("evaluate failed")


def test_of_a_run_without_any_record_the_first_step_died() -> None:
    assert "resolve ended without a word" in of(state="FAILED").text


def test_a_cancelled_run_says_so() -> None:
    assert (
        "train ended without a word: it was cancelled."
        in of(record("resolve", ""), record("ingest", ""), state="CANCELLED").text
    )


def test_a_step_that_went_well_in_the_end_did_not_fail() -> None:
    again = [record("ingest", "store away", "failed"), record("ingest", "9 images.", started=NOON + 9)]
    assert of(*again).title == "flywheel of detector: ingest is done"
    assert of(record("resolve", ""), *again, state="FAILED").title == "flywheel of detector: train failed"


@pytest.mark.parametrize(
    ("name", "sentence", "level", "title"),
    [
        ("rollout", "Promoted: v2 is not inferior.", "info", "says promoted"),
        ("rollout", "Held: nothing could be shown.", "warning", "says held"),
        ("rollout", "Rolled back: 20 % errors.", "warning", "says rolled back"),
        ("evaluate", "fail: mAP50 is 0.1.", "warning", "says fail"),
        ("evaluate", "undecided: 3 images.", "warning", "says undecided"),
        ("snapshot", "Data version 1. rollout decided on it before: promote.", "info", "is done"),
        ("monitor", "alert: brightness drifted.", "warning", "says alert"),
        ("monitor", "retrain: confidence fell by 9 %. Next: label s3://x", "warning", "says retrain"),
    ],
)
def test_a_run_that_went_well_tells_what_its_last_step_decided(
    name: str, sentence: str, level: str, title: str
) -> None:
    told = of(record("resolve", "No champion."), record(name, sentence, started=NOON + 9))
    assert (told.level, told.title) == (level, f"flywheel of detector: {name} {title}")
    assert f"{told.text} Next: {told.next}".startswith(sentence)


def watched(decision: Literal["quiet", "alert", "retrain"], request: str = "", *started: str) -> MonitorReport:
    return MonitorReport(
        id=f"monitored-{decision}",
        lineage=Lineage(code="c", image="i", run="r"),
        decision=decision,
        reason="because",
        endpoint="detector",
        release="release-1",
        at=NOON,
        first=NOON,
        last=NOON,
        count=200,
        tests=(),
        confidence_drop=None,
        estimated_drop=None,
        measured_drop=None,
        request=request,
        started=started,
        page=Blob(uri="u", sha256="s", size=1),
    )


def test_a_monitor_that_saw_nothing_and_did_nothing_is_not_told() -> None:
    def said(sentence: str, *started: str) -> Notice | None:
        return compose(ABOUT, [record("monitor", sentence)], "SUCCEEDED", watched("quiet", "", *started))

    assert said("quiet: 200 requests.") is None
    assert said("quiet: 200 requests. Run retrain-1 is started.", "retrain-1")
    told = said("quiet: 200 requests. The labels are there. Next: flywheel run --data x")
    assert told
    assert (told.level, told.next) == ("info", "flywheel run --data x")


def test_a_monitor_tells_a_decision_once_a_day_and_each_request_and_run() -> None:
    def key(sentence: str, report: MonitorReport, started: float = NOON) -> str:
        told = compose(ABOUT, [record("monitor", sentence, started=started)], "SUCCEEDED", report)
        assert told
        assert told.level == "warning"
        return told.key

    alert, retrain = key("alert: p is 0.001.", watched("alert")), key("retrain: 5 %.", watched("retrain", "request-1"))
    assert alert == key("alert: p is 0.002.", watched("alert"), NOON + 600)
    assert retrain == key("retrain: 6 %. No labels are asked for.", watched("retrain", "request-1"), NOON + 600)
    others = {
        key("alert: p is 0.001.", watched("alert"), NOON + 86_400),
        key("retrain: 5 %.", watched("retrain", "request-2")),
        key("alert: 5 %.", watched("alert", "", "retrain-1")),
    }
    assert len({alert, retrain} | others) == 5


def test_the_word_of_notify_itself_is_not_told() -> None:
    assert of(record("rollout", "Promoted: v2."), record("notify", "told", started=NOON + 9)).text == "Promoted: v2."


def test_what_is_said_again_is_told_once_a_day() -> None:
    """A schedule that fails every minute in the same way."""
    failed = record("ingest", "no such bucket", "failed")
    later, tomorrow, other = (
        failed.but(started=NOON + 60),
        failed.but(started=NOON + 86_400),
        failed.but(sentence="access denied"),
    )
    keys = [of(each, state="FAILED").key for each in (failed, later, tomorrow, other)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    elsewhere = compose(About("flywheel", "other", "run-1", STEPS), [failed], "FAILED")
    assert elsewhere
    assert elsewhere.key != keys[0]


class Way:
    """A way to people that fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.told = failures, list[Notice]()

    def send(self, notice: Notice) -> None:
        if self.failures:
            self.failures -= 1
            raise PlatformError("HOOK cannot be reached.", "see whether it is up")
        self.told.append(notice)


NOTICE = Notice(key="k", level="info", title="promoted", text="v2")


def test_each_way_takes_a_notice_once_and_what_failed_is_sent_again(world: World) -> None:
    log, slack = Way(), Way(failures=1)
    ways = {"log://": log, "slack://HOOK": slack}
    assert deliver(world.store, ways, NOTICE) == (
        "promoted. log:// was told. slack://HOOK: HOOK cannot be reached. Next: see whether it is up"
    )
    assert deliver(world.store, ways, NOTICE) == "promoted. log:// knows already. slack://HOOK was told."
    assert log.told == slack.told == [NOTICE]
    deliver(world.store, ways, NOTICE.but(key="other"))
    assert len(log.told) == 2


class Away(LocalStore):
    """A store that neither answers nor takes anything."""

    def exists(self, key: str) -> bool:
        raise PlatformError(f"{key} cannot be looked for.")

    def put(self, key: str, source: bytes | Path) -> str:
        raise PlatformError(f"{key} could not be written.")


def test_a_store_that_is_away_keeps_nobody_from_being_told(tmp_path: Path) -> None:
    log, slack = Way(), Way()
    said = deliver(Away(f"file://{tmp_path}"), {"log://": log, "slack://HOOK": slack}, NOTICE)
    assert log.told == slack.told == [NOTICE]
    assert said.count("was told.") == said.count("could not be written") == 2


def test_the_step_ends_well_whatever_happens_on_the_way(
    platform: Platform, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    line = platform.but(notify=("slack://HOOK", "log://")).line()
    with pytest.raises(SystemExit), step("ingest", line, "run-1"):
        raise UserError("source x does not exist.", "ls x")
    run("FAILED", "flywheel", "resolve ingest", "detector", line, "run-1")
    said = run_records(world.store, "run-1")[-1]
    assert (said.step, said.outcome) == ("notify", "done")
    assert "slack://HOOK: the environment variable HOOK is not set" in said.sentence
    assert "log:// was told" in said.sentence
    told = "flywheel | notify: flywheel of detector: ingest failed. source x does not exist. Next: ls x\n"
    assert told in capsys.readouterr().out


def test_without_readable_records_the_failure_is_told_all_the_same(
    platform: Platform, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.store.put("runs/run-1/ingest-1.json", b"torn")
    run("FAILED", "flywheel", "resolve ingest", "detector", platform.line(), "run-1")
    out = capsys.readouterr().out
    assert "flywheel | notify: flywheel of detector: failed, no more is known." in out
    assert "runs/run-1/ingest-1.json is no StepRecord" in out


def test_a_quiet_monitor_is_told_to_nobody(platform: Platform, world: World) -> None:
    report = watched("quiet")
    keep(world.store, report)
    with step("monitor", platform.line(), "run-1") as here:
        here.artifact, here.sentence = report.id, "quiet: 200 requests."
    run("SUCCEEDED", "monitor", "monitor", "detector", platform.line(), "run-1")
    assert run_records(world.store, "run-1")[-1].sentence == "Nothing that a person has to know."


PIPELINE = """
import sys, warnings
from kfp import dsl, local
from kfp_flywheel.components.notify.component import notify

@dsl.component(base_image="python", install_kfp_package=False)
def one(how: str, platform: str, run_id: str) -> str:
    import os, signal
    from kfp_flywheel.components.runtime.errors import UserError
    from kfp_flywheel.components.runtime.step import step
    with step("one", platform, run_id) as here:
        here.sentence = "Promoted: v2."
        if how == "fail":
            raise UserError("x is 3.", "make it 4")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    return "new"

@dsl.component(base_image="python", install_kfp_package=False)
def two(platform: str, run_id: str):
    pass

@dsl.pipeline(name="tried")
def tried(how: str, platform: str):
    common = {"platform": platform, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    told = notify(pipeline="tried", steps="one two", **common).set_caching_options(False)
    with dsl.ExitHandler(told, name="tell"):
        first = one(how=how, **common)
        with dsl.If(first.outputs["Output"] == "new", name="new"):
            two(**common)

local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[3])
tried(how=sys.argv[1], platform=sys.argv[2])
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("well", "tried of detector: one says promoted. Promoted: v2."),
        ("fail", "tried of detector: one failed. x is 3. Next: make it 4"),
        ("kill", "tried of detector: one failed. one ended without a word: killed, out of memory, or never started."),
    ],
)
def test_as_the_exit_task_of_a_pipeline_it_tells_however_the_run_ends(
    how: str, said: str, platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "tried.py").write_text(PIPELINE)
    command = [sys.executable, "tried.py", how, platform.line(), str(tmp_path / "root")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert f"flywheel | notify: {said}" in done.stdout, done.stdout + done.stderr
    assert (done.returncode == 0) is (how == "well")
