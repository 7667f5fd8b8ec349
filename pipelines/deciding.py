"""`flywheel promote` and `flywheel rollback`: what a person decides about an endpoint, at once."""

import getpass
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..components.rollout import hand
from ..components.rollout.ready import until_it_answers
from ..components.rollout.stage import golden_asker, set_alias, unprojected
from ..components.runtime.config import Platform
from ..components.runtime.wiring import connect

READY_S = 120.0


def decide(how: str, endpoint: str, platform: Platform) -> dict[str, Any]:
    """Promote the canary, or roll back, and wait until the endpoint answers as was decided.

    Args:
        how: promote or rollback.

    Raises:
        UserError: There is nothing to be decided.
        PlatformError: It was decided, but the endpoint does not answer accordingly.
    """
    world = connect(platform)
    act = hand.promote if how == "promote" else hand.rollback
    state = act(world.store, world.serving, endpoint, getpass.getuser(), time.time())
    champion = state.champion
    document = {"endpoint": endpoint, "stable": state.stable, "reason": state.reason, "answers": False}
    if champion is None or not world.serving.url(endpoint):
        return document
    with tempfile.TemporaryDirectory(prefix="flywheel-golden-") as folder:
        ask = golden_asker(world.store, champion, endpoint, Path(folder))
        until_it_answers(world.serving, endpoint, f"v{champion.version}", champion, READY_S, ask, lambda line: None)
    if problem := unprojected(lambda served: set_alias(world.mlflow, served), champion):
        document["reason"] = f"{state.reason} {problem}"
    return document | {"answers": True}


def show(document: dict[str, Any]) -> None:
    """Print what was decided."""
    says = "and the endpoint answers so" if document["answers"] else "and nobody serves it now; next: flywheel serve"
    Console(highlight=False, soft_wrap=True).print(
        f"{escape(document['reason'])} {document['stable']} is stable, {says}."
    )
