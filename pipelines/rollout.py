"""A release that is registered already, rolled out by itself."""

from kfp import dsl

from ..components.notify.component import notify
from ..components.recall.component import recall
from ..components.resolve.component import resolve
from ..components.rollout import component as contract
from ..components.runtime import config
from .describe import described


@dsl.pipeline(name="rollout")
@described
def rollout(
    model: str = "detector",
    version: str = "",
    endpoint: str = "detector",
    ready_timeout_s: float = 300.0,
    canary_steps: str = "10,50,100",
    step_requests: int = 100,
    max_requests: int = 10_000,
    max_seconds: float = 3600.0,
    look_s: float = 1.0,
    error_margin: float = 0.01,
    slow_margin: float = 0.05,
    replays: int = 200,
    platform: str = "",
) -> None:
    """Try a registered release beside the champion of an endpoint; promote it, take it back, or hold it."""
    given = dict(locals())
    common = {"platform": platform, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    settings = {name: given[name] for name in config.Rollout.__struct_fields__}
    told = notify(pipeline="rollout", steps="resolve recall rollout", endpoint=endpoint, **common)
    with dsl.ExitHandler(told.set_caching_options(False), name="steps"):
        resolved = resolve(parameters="", endpoint=endpoint, **common).set_caching_options(False)
        recalled = recall(model=model, version=version, **common).after(resolved).set_caching_options(False)
        contract.rollout(
            release=recalled.outputs["release"],
            champion=resolved.outputs["champion"],
            config=resolved.outputs["Output"],
            **settings,
            **common,
        ).set_caching_options(False)
