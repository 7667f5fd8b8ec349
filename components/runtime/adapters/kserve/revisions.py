"""An endpoint in Knative's mode: one InferenceService, and each change of its template is a revision. Nothing is asked.

What KServe makes of `canaryTrafficPercent`, and what follows from it:

- The share goes to the latest *ready* revision, the rest to the one that was fully rolled out last. So a share above 0
  is asked for only once the latest ready revision is the one that is meant; until then it is 0. Each template carries a
  number of its own, its turn, and so does its revision: no status of before can be taken for one of now.
- At the first deploy the share is ignored: a canary begins when its stable version was rolled out.
- Without the field everything goes to the latest ready revision, even to a canary that was just taken away. So its
  template is replaced by the stable version's at 0, and the share is 100 only when that one is ready. Leaving the
  canary's template at 0 would be simpler, but it would go on running, and be what the next canary's share hits first.
- A share below 100 of a revision that was fully rolled out means to KServe: back to the one that was so before it.
  For a moment the status shows just that when the next canary's template was written and its revision is not made yet.
  So where that one is another version, a champion is asked for with everything at once, and a canary begins when the
  stable version was rolled out once more: then both are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...artifacts import content_id
from ...config import Platform, Pods
from ...errors import UserError
from ...ports import EndpointState
from ..kubernetes import MANAGER, Kind
from ..pods import MANAGED
from . import build
from .build import ENDPOINT, VERSION

KNATIVE_SERVICE = Kind("serving.knative.dev", "v1", "services")
REVISION = Kind("serving.knative.dev", "v1", "revisions")
TURN = "flywheel/turn"
PERCENT = "canaryTrafficPercent"
ALL = 100


class Asked(NamedTuple):
    """What an InferenceService asks for: a version, and its share of the traffic in percent."""

    version: str
    percent: int | None
    turn: str


class Rolled(NamedTuple):
    """What its status tells.

    Args:
        turn: Of the latest ready revision; empty for none.
        full: Version that was fully rolled out last; empty for none.
        before: Version that was so before it: where KServe falls back to.
        latest: Whether the one that was fully rolled out is the latest ready revision.
    """

    turn: str = ""
    full: str = ""
    before: str = ""
    latest: bool = False


def canary_of(state: EndpointState) -> str:
    """The version beside the champion; empty for none."""
    return next((version for version in state.versions if version != state.stable), "")


def refuse_indivisible(state: EndpointState) -> None:
    """Two revisions share the traffic, the canary's share is below 100 percent, and nobody is sent copies.

    Raises:
        UserError: Something else is wanted.
    """
    weights = [served.weight for served in state.versions.values()]
    canary = state.versions.get(canary_of(state))
    shared = len(weights) <= 2 and sum(weights) == ALL and (canary is None or 0 <= canary.weight < ALL)
    if state.shadow:
        raise UserError(
            f"endpoint {state.endpoint} cannot send copies to {state.shadow}: Knative's gateways copy no requests.",
            "take 0 out of canary_steps",
        )
    if state.versions and (state.stable not in state.versions or not shared):
        raise UserError(
            f"endpoint {state.endpoint} cannot have {_shares(state)}: in Knative's mode there is a champion, and one "
            "canary with less than 100 % beside it.",
            "gateway.mode: standard in the platform file divides the traffic as you like",
        )


def _shares(state: EndpointState) -> str:
    return ", ".join(f"{version} with {served.weight} %" for version, served in state.versions.items())


def step(state: EndpointState, asked: Asked | None, seen: Rolled) -> Asked:
    """What is to be asked for next; the same again when there is nothing to do, or to be waited for.

    Whatever comes between, no share goes to a version that is not wanted, and none beyond its own to a canary.

    Args:
        state: With a champion.
        asked: None where there is no InferenceService.
    """
    stable, canary = str(state.stable), canary_of(state)
    if asked is None:
        return Asked(stable, ALL, _turn(state, None))
    settled, alone = seen.turn == asked.turn, _latest(asked) == ALL
    another = seen.before not in ("", seen.full)  # would come back, were less than everything asked for
    if canary and seen.full == stable:
        if asked.version == canary:
            return asked._replace(percent=state.versions[canary].weight if settled else 0)
        if asked.version == stable and alone and another:
            return Asked(stable, ALL, _turn(state, asked)) if settled and seen.latest else asked._replace(percent=ALL)
        return Asked(canary, 0, _turn(state, asked))
    if asked.version == stable:
        return asked._replace(percent=ALL if settled or alone or not seen.full else 0)
    # Only what had everything asked for it, as no canary was begun since, could get ready before what comes now.
    ours = alone and (another or (settled and seen.full == asked.version))
    return Asked(stable, ALL if ours or not seen.full else 0, _turn(state, asked))


def _turn(state: EndpointState, asked: Asked | None) -> str:
    """Greater than all before it, also than those of an endpoint of this name that was deleted."""
    before = int(asked.turn) if asked and asked.turn.isdecimal() else 0
    return str(max(before + 1, state.generation))


def asked_of(service: Mapping[str, Any]) -> Asked:
    """What an InferenceService asks for now."""
    predictor = service["spec"]["predictor"]
    labels = predictor.get("labels") or {}
    return Asked(labels.get(VERSION, ""), predictor.get(PERCENT), labels.get(TURN, ""))


def rolled(service: Mapping[str, Any], revisions: Sequence[Mapping[str, Any]]) -> Rolled:
    """What the status of an InferenceService tells."""
    labels = {item["metadata"]["name"]: item["metadata"]["labels"] for item in revisions}
    found = predictor_of(service)
    ready, full = found.get("latestReadyRevision", ""), found.get("latestRolledoutRevision", "")
    before = found.get("previousRolledoutRevision", "")
    return Rolled(
        turn=labels.get(ready, {}).get(TURN, ""),
        full=labels.get(full, {}).get(VERSION, "?" if full else ""),
        before=labels.get(before, {}).get(VERSION, "?" if before else ""),
        latest=bool(full) and full == ready,
    )


def predictor_of(service: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of an InferenceService's only component."""
    found: Mapping[str, Any] = service.get("status", {}).get("components", {}).get("predictor", {})
    return found


def edited(state: EndpointState, service: Mapping[str, Any], setters: Sequence[Mapping[str, Any]]) -> str:
    """Who changed the share past us, or nothing. A change that was undone is none.

    Args:
        setters: The API server's account of who set the field.
    """
    asked = asked_of(service)
    wanted = state.versions[asked.version].weight if asked.version == canary_of(state) else ALL
    if any(entry["manager"] == MANAGER for entry in setters) or _latest(asked) == wanted:
        return ""
    who = f"by {setters[-1]['manager']} at {setters[-1]['time']}" if setters else "by somebody"
    return f"its InferenceService was edited {who}"


def as_asked(state: EndpointState, service: Mapping[str, Any]) -> EndpointState:
    """The state with the shares that an InferenceService asks for."""
    asked, canary = asked_of(service), canary_of(state)
    share = _latest(asked) if asked.version == canary else 0
    versions = {
        version: served.but(weight=share if version == canary else ALL - share)
        for version, served in state.versions.items()
    }
    return state.but(versions=versions)


def _latest(asked: Asked) -> int:
    """Share of the latest ready revision: all of it where none is asked for."""
    return ALL if asked.percent is None else asked.percent


def place_of(
    version: str, service: Mapping[str, Any], revisions: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any] | None, str]:
    """The revision by which a version answers, or is to answer, and its own address where it has traffic or a tag."""
    mine = {item["metadata"]["name"]: item for item in revisions if item["metadata"]["labels"].get(VERSION) == version}
    entries = [entry for entry in predictor_of(service).get("traffic", ()) if entry.get("revisionName") in mine]
    tagged = [entry for entry in entries if entry.get("url")]
    if tagged:
        most = max(tagged, key=lambda entry: int(entry.get("percent") or 0))
        return mine[most["revisionName"]], str(most["url"])
    newest = max(mine.values(), key=lambda item: int(item["metadata"]["labels"].get(TURN) or 0), default=None)
    return newest, ""


def runtime(namespace: str, image: str, pods: Pods) -> dict[str, Any]:
    """The ServingRuntime of one serving image, with what Knative allows: it drains by itself, and names protocols.

    Raises:
        UserError: The image is named by no digest.
    """
    made = build.runtime(namespace, image, pods)
    server = made["spec"]["containers"][0]
    del server["lifecycle"]
    server["ports"][0]["name"] = "http1"
    made["metadata"]["name"] = f"flywheel-{content_id(made['spec'])}"
    return made


def service(
    namespace: str, state: EndpointState, asked: Asked, platform: Platform, runtime_name: str
) -> dict[str, Any]:
    """The InferenceService of an endpoint.

    Its labels and annotations stand in each revision's template: what changes there makes another revision. So the
    wanted state, which changes with each renewal of a lease, is elsewhere.
    """
    made = build.service(
        *(namespace, state.endpoint, asked.version, state.versions[asked.version]),
        *(platform.store, runtime_name, platform.pods, platform.log_share),
    )
    made["metadata"] |= {
        "name": state.endpoint,
        "labels": MANAGED | {ENDPOINT: state.endpoint},
        # A tag gives a revision an address of its own.
        "annotations": {"serving.kserve.io/deploymentMode": "Knative", "serving.kserve.io/enable-tag-routing": "true"},
    }
    predictor = made["spec"]["predictor"]
    del predictor["topologySpreadConstraints"]  # Knative refuses them, unless its administrator allows it
    # Never left out: then the API server's account tells whether somebody else took the field away.
    predictor |= {PERCENT: asked.percent, "labels": {VERSION: asked.version, TURN: asked.turn}}
    return made
