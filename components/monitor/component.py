"""The contract of monitor."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def monitor(
    report: dsl.Output[dsl.Artifact], page: dsl.Output[dsl.HTML], endpoint: str = "detector", window: int = 200,
    detector: str = "ks+mmd", drift_alpha: float = 0.01, harm_drop: float = 0.05, cooldown_s: float = 86_400.0,
    budget: int = 4, retrain_with: str = "", platform: str = "", run_id: str = "",
) -> str:  # fmt: skip
    """Hold the last requests of an endpoint against what its champion was judged on; ask for labels when it is harmed.

    When the labels that were asked for are there, the flywheel is started on them.

    Args:
        report: Receives the MonitorReport.
        page: Receives the page for a person.
        endpoint: Name of the endpoint.
        window: Requests that are judged together.
        detector: Test of drift; alibi's need the extra monitor.
        drift_alpha: False alarms on windows without a change, as a share.
        harm_drop: Estimated loss of mAP50 that is harm.
        cooldown_s: Seconds between two requests for labels.
        budget: Requests for labels in 30 days, at most.
        retrain_with: Lines NAME=VALUE: parameters of the retraining.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.

    Returns:
        decision: quiet, alert, retrain or undecided.
    """
    from kfp_flywheel.components.monitor.stage import run

    return run(
        *(report.path, page.path, platform, run_id), endpoint=endpoint, window=window, detector=detector,
        drift_alpha=drift_alpha, harm_drop=harm_drop, cooldown_s=cooldown_s, budget=budget, retrain_with=retrain_with,
    )  # fmt: skip
