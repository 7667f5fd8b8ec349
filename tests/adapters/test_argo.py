"""The steps of a run on Kubeflow Pipelines, among nodes that tell neither their own ids nor their parents."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.kfp.argo import _fnv, pods_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STEPS = ("resolve", "ingest", "train")


def node(workflow: str, name: str, child: str, started: float = 0, state: str = "RUNNING") -> SimpleNamespace:
    """What KFP tells of a node; its child is known by the number of its pod."""
    display = name if name.partition("(")[0] == workflow and "." not in name else name.rpartition(".")[2]
    children = [SimpleNamespace(pod_name=f"{workflow}-{_fnv(child)}")] if child else None
    return SimpleNamespace(
        display_name=display, child_tasks=children, start_time=NOON + timedelta(seconds=started), state=state
    )


def step(workflow: str, name: str, started: float, late: float) -> list[SimpleNamespace]:
    at = f"{workflow}(0).root(0).exit-handler-1(0).{name}"
    nodes = [node(workflow, f"{at}-driver", f"{at}-driver(0)", started, "SUCCEEDED")]
    nodes += [node(workflow, at, f"{at}(0)", started), node(workflow, f"{at}(0)", f"{at}(0).executor", started)]
    return [*nodes, node(workflow, f"{at}(0).executor", f"{at}(0).executor(0)", started + late)]


def above(workflow: str) -> list[SimpleNamespace]:
    root = f"{workflow}(0).root"
    first, handler = (
        node(workflow, workflow, f"{workflow}(0)"),
        node(workflow, f"{root}(0)", f"{root}(0).exit-handler-1"),
    )
    last = f"{root}(0).exit-handler-1"
    found = [first, node(workflow, f"{workflow}(0)", root), node(workflow, root, f"{root}(0)"), handler]
    found.append(node(workflow, last, f"{last}(0)"))
    for name in STEPS:
        found.append(node(workflow, f"{last}(0)", f"{last}(0).{name}"))
    return found


@given(st.permutations(range(len(STEPS))), st.lists(st.floats(0, 30), min_size=3, max_size=3), st.randoms())
def test_each_pod_has_the_name_of_its_step_whenever_it_begins(order: list[int], late: list[float], random) -> None:  # type: ignore[no-untyped-def]
    nodes = [
        *above("wf-1"),
        *(each for at, name in enumerate(STEPS) for each in step("wf-1", name, order[at], late[at])),
    ]
    random.shuffle(nodes)
    found = {name: pod for name, pod, _ in pods_of(nodes)}
    numbers = {name: _fnv(f"wf-1(0).root(0).exit-handler-1(0).{name}(0).executor(0)") for name in STEPS}
    assert found == {name: f"wf-1-system-container-impl-{number}" for name, number in numbers.items()}


def test_numbers_are_those_that_argo_gives() -> None:
    """Read off a run on KFP 2.17 with Argo 4.0.5."""
    assert _fnv("flywheel-6pq4k(0).root(0).exit-handler-1(0).resolve(0).executor(0)") == 1965172317


def test_a_driver_that_failed_stands_for_its_step_and_others_for_nothing() -> None:
    at = "wf-1(0).root(0).train-driver"
    (failed,) = pods_of([node("wf-1", at, f"{at}(0)", state="FAILED"), *above("wf-1")])
    assert failed[:2] == ("train-driver", f"wf-1-system-container-driver-{_fnv(f'{at}(0)')}")


@pytest.mark.parametrize("name", ["elsewhere(0).executor", "wf-1(0).loop(0:{}).executor"])
def test_a_pod_whose_place_is_unknown_is_a_step_all_the_same(name: str) -> None:
    assert [each[0] for each in pods_of([node("wf-1", name, f"{name}(0)")])] == ["step"]
