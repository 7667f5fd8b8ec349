"""`flywheel uninstall`: what of ours is on a cluster, what goes, and what stays and how that would go."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..components.runtime import ledger
from ..components.runtime.config import Platform
from ..components.runtime.errors import UserError
from ..components.runtime.wiring import connect

REASON = "uninstalled."


def uninstall(platform: Platform, yes: bool, endpoints: bool, by: str) -> dict[str, Any]:
    """Tell what there is, and remove what the manifests made if that is wanted.

    Args:
        yes: Remove it; without, nothing is touched.
        endpoints: End what serves too.
        by: Who does it, for the ledger.

    Returns:
        What there is: `endpoints`, `jobs` at work, what `goes`, and what `stays` with the command that ends it.

    Raises:
        UserError: The platform is this machine, or something is at work.
    """
    if not platform.namespaces:
        raise UserError(
            f"serving is {platform.serving} and jobs is {platform.jobs}: nothing is on a cluster.",
            "delete the folder of this machine, .flywheel",
        )
    world = connect(platform)
    there = world.installed()
    serves, (at_work, ended), (made, holds) = there.endpoints(), there.jobs(), there.made()
    goes = [*made, *ended, *there.left()]
    if yes and serves and not endpoints:
        names = ", ".join(sorted(item.name for item in serves))
        raise UserError(
            f"{names} serves in {serves[0].namespace}: users would get no answer.",
            "flywheel uninstall --platform FILE --yes --endpoints",
        )
    if yes and at_work:
        names = ", ".join(f"{item.namespace}/{item.name}" for item in at_work)
        raise UserError(
            f"RayJob {names} is at work: its run would fail.",
            f"end its run, or kubectl -n {at_work[0].namespace} delete rayjob {at_work[0].name}",
        )
    if yes:
        for item in (one for one in made if one.kind == "Deployment"):  # it would put right what is taken away
            there.delete(item)
        for item in serves:
            state = world.serving.read(item.name)
            there.delete(item)
            ledger.close(world.store, state, by, REASON, time.time())
        for item in goes:
            there.delete(item)
    return {
        "removed": yes,
        "endpoints": [item._asdict() for item in serves],
        "jobs": [item._asdict() for item in at_work],
        "goes": [item._asdict() for item in goes],
        "stays": [
            *(
                {**item._asdict(), "next": f"kubectl -n {item.namespace} delete {item.kind} {item.name}"}
                for item in holds
            ),
            *_elsewhere(platform),
        ],
    }


def _elsewhere(platform: Platform) -> list[dict[str, str]]:
    """What holds data, or is not ours alone."""
    return [
        {
            "kind": "store",
            "name": platform.store,
            "next": "delete it as its provider has it: all data and models are there",
        },
        {"kind": "MLflow", "name": platform.tracking, "next": "delete its models and experiments there"},
        {
            "kind": "pipelines",
            "name": "Kubeflow Pipelines",
            "next": "flywheel schedule list, then delete each; its pipelines in the dashboard",
        },
        {"kind": "operators", "name": "KServe, KubeRay, Gateway API and their CRDs", "next": "others may use them"},
        *(
            {
                "kind": "Namespace",
                "name": name,
                "next": f"kubectl delete namespace {name}: with all that is in it, secrets too",
            }
            for name in platform.namespaces
        ),
    ]


def show(found: dict[str, Any]) -> None:
    """Print it for a person."""
    console = Console(highlight=False, soft_wrap=True)
    done = found["removed"]
    for title, items in (
        ("serves", [] if done else found["endpoints"]),
        ("is at work", found["jobs"]),
        ("was removed" if done else "would go with --yes", (found["endpoints"] if done else []) + found["goes"]),
    ):
        for item in items:
            console.print(f"{title}: {item['kind']} {escape(item['namespace'])}/{escape(item['name'])}")
    for item in found["stays"]:
        console.print(f"stays: {item['kind']} {escape(item['name'])}")
        console.print(f"       next: {escape(item['next'])}")
