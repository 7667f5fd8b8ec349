"""Steps among Argo's nodes, which is what Kubeflow Pipelines calls tasks. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any

DRIVER = "-driver"
EXECUTOR = "executor"
ATTEMPTS = 10


def pods_of(details: Iterable[Any]) -> list[tuple[str, str, Any]]:
    """The steps: name, pod, and node of each, by their start.

    A node called `executor` is a step's: its child is the pod. Of its own name and place it tells nothing, but its
    child's number is a hash of the child's full name, `WORKFLOW(0).root(0).STEP(0).executor(0)`.
    """
    nodes = sorted((each for each in details if each.start_time), key=lambda each: each.start_time)
    children = [child.pod_name for each in nodes for child in each.child_tasks or () if child.pod_name]
    names = _names(children, {each.display_name for each in nodes})
    found = []
    for node in nodes:
        child = next((each.pod_name for each in reversed(node.child_tasks or ()) if each.pod_name), "")
        workflow, _, number = child.rpartition("-")
        if node.display_name == EXECUTOR and child:
            step = names.get(child, "step(0).").split(".")[-2].partition("(")[0]
            found.append((step, f"{workflow}-system-container-impl-{number}", node))
        elif node.display_name.endswith(DRIVER) and child and node.state == "FAILED":
            found.append((node.display_name, f"{workflow}-system-container-driver-{number}", node))
    return found


def _names(ids: Iterable[str], displayed: set[str]) -> dict[str, str]:
    """Full names of Argo's nodes by their ids, from the workflow down: each begins with its parent's."""
    wanted, found = set(ids), dict[str, str]()
    for workflow in {each.rpartition("-")[0] for each in wanted}:
        names = [workflow]
        for name in names:
            for below in _below(name, displayed):
                id = f"{workflow}-{_fnv(below)}"
                if id in wanted and id not in found:
                    found[id] = below
                    names.append(below)
    return found


def _below(name: str, displayed: set[str]) -> Iterator[str]:
    """Names that a child of this node may have: an attempt, or a task in one."""
    if name.endswith(")"):
        yield from (f"{name}.{each}" for each in displayed)
    else:
        yield from (f"{name}({attempt})" for attempt in range(ATTEMPTS))


def _fnv(text: str) -> int:
    """FNV-1a, 32 bits (Fowler, Noll, Vo)."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
