"""Schedules as people write them, and as Kubeflow reads them."""

import re
from datetime import UTC, datetime
from itertools import islice

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.kfp.cron import explained, five_fields, six_fields
from kfp_flywheel.components.runtime.errors import UserError


def part(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    spans = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.tuples(st.just("*") | spans, st.integers(1, 7)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.just("*") | st.lists(number.map(str) | spans | steps, min_size=1, max_size=3).map(",".join)


WEEKDAYS = part(0, 7).filter(lambda days: not ("*" in days and "," in days))
CRONS = st.tuples(part(0, 59), part(0, 23), part(1, 28), part(1, 12), WEEKDAYS).map(" ".join)


@settings(deadline=None)
@given(CRONS)
def test_with_seconds_it_means_the_same_times(cron: str) -> None:
    start = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    translated = six_fields(cron)
    assert list(islice(CronSim(translated, start), 20)) == list(islice(CronSim(cron, start), 20))
    assert len(translated.split()) == 6
    assert re.sub("/[0-9]+", "", translated.split()[5]).count("7") == 0  # Sunday is 0 there
    assert list(islice(CronSim(five_fields(translated), start), 20)) == list(islice(CronSim(cron, start), 20))


@pytest.mark.parametrize(
    ("cron", "six", "words"),
    [
        ("0 3 * * *", "0 0 3 * * *", "at 03:00 every day (UTC)"),
        ("*/15 * * * *", "0 */15 * * * *", "every 15th minute of every hour (UTC)"),
        ("0 6 * * 7", "0 0 6 * * 0", "at 06:00 on Sunday (UTC)"),
        ("0 6 * jan MON-FRI", "0 0 6 * JAN 1,2,3,4,5", ""),
        ("0 0 1 * 5-7", "0 0 0 1 * 0,5,6", ""),
    ],
)
def test_a_schedule_is_translated_and_told(cron: str, six: str, words: str) -> None:
    assert six_fields(cron) == six
    assert not words or explained(cron) == words


@pytest.mark.parametrize(
    ("cron", "why"),
    [
        ("0 0 3 * * *", "has 6 fields, and cron has five"),
        ("", "has 0 fields"),
        ("60 3 * * *", "bad minute"),
        ("0 3 31 2 *", "bad day-of-month"),
        ("0 3 L * *", "has L, which Kubeflow's cron does not know"),
        ("0 3 * * 5#2", "has #, which"),
        ("0 3 * * 5L", "has L, which"),
        ("0 3 * * */2,7", r"names days of the week beside \*"),
        ("@daily x x x x", "has @, which"),
        ("a b c d e", "is not cron"),
    ],
)
def test_what_is_no_cron_is_refused_with_an_example(cron: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as refused:
        six_fields(cron)
    assert "every day at 03:00 UTC" in refused.value.next


def test_a_schedule_of_somebody_else_is_told_as_it_is() -> None:
    assert five_fields("30 0 3 * * *") == "30 0 3 * * *"
    assert explained("30 0 3 * * *") == "30 0 3 * * *"
