"""The contract of the Serving port, over every adapter."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.kserve.knative import KnativeServing
from kfp_flywheel.components.runtime.adapters.kserve.serving import KServe
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.errors import Conflict, Corrupt
from kfp_flywheel.components.runtime.ports import Observed, Serving

from tests.cluster.fixtures import platform_without_pods
from tests.releases import release, stable

Open = Callable[[], Serving]


ON_A_CLUSTER = {"kserve": KServe, "knative": KnativeServing}


@pytest.fixture(params=["local", *(pytest.param(name, marks=pytest.mark.cluster) for name in ON_A_CLUSTER)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the adapter again and again, as every step of a run does."""
    if request.param == "local":
        return lambda: LocalServing(f"local://{tmp_path}")
    platform, adapter = platform_without_pods(request.getfixturevalue("namespace")), ON_A_CLUSTER[request.param]
    return lambda: adapter(platform)


def test_an_endpoint_that_nobody_wrote_has_no_champion(opened: Open) -> None:
    state = opened().read("detector")
    assert (state.generation, state.champion, state.versions) == (0, None, {})
    assert opened().observe("detector") == {}


def test_what_was_written_is_read_by_everybody(opened: Open) -> None:
    written = opened().write(stable(opened().read("detector"), "1"))
    assert written.generation > 0
    assert opened().read("detector") == written
    assert written.champion == release("1")


def test_endpoints_do_not_know_each_other(opened: Open) -> None:
    opened().write(stable(opened().read("one"), "1"))
    assert opened().read("other").generation == 0


def test_a_change_of_something_older_is_refused_and_changes_nothing(opened: Open) -> None:
    old = opened().read("detector")
    new = opened().write(stable(old, "1"))
    with pytest.raises(Conflict, match=f"generation {new.generation}, not 0"):
        opened().write(stable(old, "2"))
    assert opened().read("detector") == new


@settings(max_examples=20, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_writers_in_any_order_see_a_line_of_generations(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, bool]]
) -> None:
    """Three writers, each reading now and then: a write succeeds just when its writer saw the last one."""
    serving: Serving = LocalServing(f"local://{tmp_path_factory.mktemp('serving')}")
    seen = [serving.read("e")] * 3
    generation = 0
    for writer, reads in plan:
        if reads:
            seen[writer] = serving.read("e")
            continue
        if seen[writer].generation == generation:
            seen[writer] = serving.write(stable(seen[writer], str(writer)))
            generation += 1
            assert seen[writer].generation == generation
        else:
            with pytest.raises(Conflict):
                serving.write(stable(seen[writer], str(writer)))
    assert serving.read("e").generation == generation


def raise_often(open_one: Open, times: int, start: threading.Barrier) -> int:
    """Add a version `times` times by reading and writing until it succeeds; gives the conflicts on the way."""
    conflicts = 0
    start.wait()
    for _ in range(times):
        while True:
            state = open_one().read("e")
            try:
                open_one().write(stable(state, str(int((state.stable or "v0")[1:]) + 1)))
                break
            except Conflict:
                conflicts += 1
    return conflicts


def test_no_write_is_lost_among_threads(opened: Open) -> None:
    first = opened().write(stable(opened().read("e"), "1"))
    start = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: raise_often(opened, 4, start), range(6)))
    final = opened().read("e")
    assert final.stable == "v25"
    assert final.generation >= first.generation + 24


def _process(folder: str, times: int, barrier: threading.Barrier) -> None:
    raise_often(lambda: LocalServing(f"local://{folder}"), times, barrier)


def test_no_write_is_lost_among_processes(tmp_path: Path) -> None:
    context = get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_process, args=(str(tmp_path), 15, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    final = LocalServing(f"local://{tmp_path}").read("e")
    assert (final.generation, final.stable) == (45, "v45")


def test_a_reader_never_sees_half_a_state(opened: Open) -> None:
    ended = threading.Event()
    read: list[int] = []

    def look() -> None:
        while not ended.is_set():
            read.append(opened().read("e").generation)

    reader = threading.Thread(target=look)
    reader.start()
    raise_often(opened, 20, threading.Barrier(1))
    ended.set()
    reader.join()
    assert read == sorted(read)


def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    serving = LocalServing(f"local://{tmp_path}")
    serving.write(stable(serving.read("e"), "1"))
    (tmp_path / "e" / "wanted.json").write_text('{"endpoint": "e"')
    with pytest.raises(Corrupt, match=r"wanted\.json is no EndpointState"):
        serving.read("e")


def test_what_is_seen_counts_only_while_its_server_lives(tmp_path: Path) -> None:
    serving = LocalServing(f"local://{tmp_path}")
    serving.write(stable(serving.read("e"), "1"))
    seen = {"v1": Observed(ready=True, url="http://127.0.0.1:1")}
    with serving.hold() as publish:
        assert serving.url("e") == ""  # at work, but not listening yet
        publish("http://127.0.0.1:8600")
        serving.report("e", seen, {"v1": 1})
        assert (serving.url("e"), serving.observe("e")) == ("http://127.0.0.1:8600", seen)
        with pytest.raises(Conflict, match=r"process \d+, http://127.0.0.1:8600"), serving.hold():
            pass
        assert serving.url("e") == "http://127.0.0.1:8600"  # the one that was refused spoilt nothing
    assert (serving.url("e"), serving.observe("e")) == ("", {})
    with serving.hold() as publish:
        publish("http://127.0.0.1:8601")
        assert serving.observe("e") == seen  # same process here; another one's report is not believed:
        path = tmp_path / "e" / "seen.json"
        path.write_text(path.read_text().replace('"server": ', '"server": 9'))
        assert serving.observe("e") == {}
