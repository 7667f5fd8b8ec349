"""The monitor: what a schedule runs, every hour or every day."""

from kfp import dsl

from ..components.monitor import component as contract
from ..components.notify.component import notify
from ..components.runtime import config
from .describe import described


@dsl.pipeline(name="monitor")
@described
def monitor(
    endpoint: str = "detector",
    window: int = 200,
    detector: str = "ks+mmd",
    drift_alpha: float = 0.01,
    harm_drop: float = 0.05,
    cooldown_s: float = 86_400.0,
    budget: int = 4,
    retrain_with: str = "",
    platform: str = "",
) -> None:
    """Watch an endpoint: alert when its requests change, ask for labels when it hurts, retrain when they are there."""
    given = dict(locals())
    common = {"platform": platform, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    settings = {name: given[name] for name in config.Monitor.__struct_fields__}
    told = notify(pipeline="monitor", steps="monitor", endpoint=endpoint, **common).set_caching_options(False)
    with dsl.ExitHandler(told, name="steps"):
        contract.monitor(**settings, **common).set_caching_options(False)
