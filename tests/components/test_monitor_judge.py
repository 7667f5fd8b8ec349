"""From a window's numbers to a decision: drift alone alerts, harm in two windows asks, no data is undecided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.monitor.judge import Measured, Seen, judge, may_ask
from kfp_flywheel.components.monitor.retraining import retraining
from kfp_flywheel.components.recipes.detection.harm import Loss
from kfp_flywheel.components.runtime.artifacts import Drift, LabelRequest
from kfp_flywheel.components.runtime.config import Monitor
from kfp_flywheel.components.runtime.errors import UserError

SETTINGS = Monitor.of(window=200, cooldown_s=3600, budget=2)
SAME = Drift(name="noise", test="ks", statistic=0.1, p_value=0.5, drifted=False)
OTHER = Drift(name="brightness", test="ks", statistic=0.9, p_value=1e-9, drifted=True)


BAD, MILD, UNSURE = Loss(0.12, 0.06), Loss(0.03, 0.01), Loss(0.12, -0.01)


def seen(before: Loss | None, now: Loss | None, count: int = 200, drifted: bool = True, **more: object) -> Seen:
    tests = (SAME, OTHER) if drifted else (SAME,)
    return Seen(count=count, tests=tests, loss=now, before=before, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "decision", "why"),
    [
        (Seen(problem="endpoint d has no champion yet."), "undecided", "no champion"),
        (seen(BAD, BAD, count=199), "undecided", "199 requests are recorded, and 200 make a window"),
        (seen(BAD, BAD, drifted=False), "quiet", "look like the holdout"),
        (seen(None, None), "alert", "whether it hurts is not known"),
        (seen(BAD, MILD), "alert", "costs an estimated 0.03 mAP50, which is no harm"),
        (seen(BAD, UNSURE), "alert", "which is no harm"),
        (seen(MILD, BAD), "alert", "which is harm if the next window shows it too"),
        (seen(None, BAD), "alert", "which is harm if the next window shows it too"),
        (seen(BAD, BAD), "retrain", "costs an estimated 0.12 mAP50, and the window before showed the same"),
        (
            seen(None, None, drifted=False, measured=Measured(40, 0.2, 0.1)),
            *("retrain", "40 labelled requests mAP50 is 0.200"),
        ),
        (seen(None, None, drifted=False, measured=Measured(40, 0.2, 0.02)), "quiet", "look like"),
        (seen(None, None, drifted=False, measured=Measured(9, 0.9, None)), "quiet", "look like"),
    ],
)
def test_a_window_leads_to_a_decision_and_says_why(found: Seen, decision: str, why: str) -> None:
    decided, reason = judge(found, SETTINGS)
    assert decided == decision
    assert why in reason


def test_the_most_telling_features_are_named() -> None:
    many = tuple(OTHER.but(name=f"f{n}", p_value=10.0**-n) for n in range(1, 6))
    _, reason = judge(Seen(count=200, tests=many, loss=BAD, before=BAD), SETTINGS)
    assert "differ from the holdout in f5, f4, f3 and 2 more" in reason


LOSSES = st.builds(Loss, st.floats(-1, 1), st.floats(-1, 1)) | st.none()


@given(LOSSES, LOSSES, st.booleans(), st.integers(0, 400))
def test_retraining_needs_drift_and_two_windows_of_harm(
    before: Loss | None, now: Loss | None, drifted: bool, count: int
) -> None:
    decision, reason = judge(seen(before, now, drifted=drifted, count=count), SETTINGS)
    hurts = all(loss and loss.estimate >= SETTINGS.harm_drop and loss.at_least > 0 for loss in (before, now))
    assert (decision == "retrain") == (drifted and hurts and count >= 200)
    assert reason


def request(at: float) -> LabelRequest:
    return LabelRequest(id="r", endpoint="d", release="r", at=at, reason="", folder="file:///l/d/r", images=("a.jpg",))


def test_labels_are_asked_for_once_at_a_time_and_within_the_budget() -> None:
    assert may_ask([], [], [], SETTINGS, 1e9) == (True, "")
    open_ = request(1e9 - 7200)
    allowed, why = may_ask([open_], [open_], [], SETTINGS, 1e9)
    assert not allowed
    assert why == "labels were asked for 2 hours ago, in file:///l/d/r"
    assert may_ask([open_], [], [], SETTINGS, 1e9)[0]
    assert "is 60 minutes" in may_ask([request(1e9 - 300)], [], [], SETTINGS, 1e9)[1]
    assert may_ask([request(1e9 - 3600)], [], [], SETTINGS, 1e9)[0]
    assert may_ask([open_], [], ["retrain-r"], SETTINGS, 1e9) == (False, "retraining retrain-r has not ended")
    two = [request(1e9 - 20 * 86_400), request(1e9 - 86_400)]
    assert may_ask(two, [], [], SETTINGS, 1e9) == (False, "2 requests were opened in 30 days, and budget is 2")
    assert may_ask(two, [], [], SETTINGS, 1e9 + 11 * 86_400)[0]


def test_a_retraining_goes_on_from_the_champion_unless_it_is_told_otherwise() -> None:
    given_ = retraining(Monitor.of(endpoint="cats", retrain_with="epochs=3\n\nstart_from=scratch\n"), "/landing")
    assert (given_["epochs"], given_["start_from"], given_["grow_from"]) == (3, "scratch", "champion")
    assert (given_["source"], given_["endpoint"]) == ("/landing", "cats")
    for wrong, message in (("epochs", "not NAME=VALUE"), ("epochs=0", "epochs"), ("epoch=1", "did you mean epochs")):
        with pytest.raises(UserError, match=message):
            retraining(Monitor.of(retrain_with=wrong), "/landing")
