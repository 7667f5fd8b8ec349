"""The contract of rollout."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def rollout(
    release: dsl.Input[dsl.Artifact], champion: dsl.Input[dsl.Artifact], report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML], links: dsl.Output[dsl.Markdown], config: str,
    endpoint: str = "detector", ready_timeout_s: float = 300.0,
    canary_steps: str = "10,50,100", step_requests: int = 100, max_requests: int = 10_000, max_seconds: float = 3600.0,
    look_s: float = 1.0, error_margin: float = 0.01, slow_margin: float = 0.05, replays: int = 200,
    platform: str = "", run_id: str = "",
) -> str:  # fmt: skip
    """Try a release beside the champion on a growing share of the traffic; promote it, take it back, or hold it.

    The first release of an endpoint has nothing beside it: it is promoted once it truly answers.

    Args:
        release: Release manifest: what is to be served.
        champion: Resolution manifest: the champion that the release was judged against.
        report: RolloutReport manifest.
        page: Page for a person.
        links: Where the endpoint answers.
        config: Id of the run's configuration, from resolve.
        endpoint: Name of the endpoint.
        ready_timeout_s: Seconds that the release may take to answer.
        canary_steps: The canary's shares of the traffic in percent, rising; 100 is promotion. With 0 it is first sent a
            copy of each request, and nobody gets its answers.
        step_requests: Requests to the canary before its share grows.
        max_requests: Requests to both after which an undecided canary is taken away.
        max_seconds: Seconds after which an undecided canary is taken away.
        look_s: Seconds between two looks.
        error_margin: More failed answers than the stable's, as a share, that are still allowed.
        slow_margin: More slow answers than the stable's, as a share, that are still allowed.
        replays: Labelled images, and recorded requests, that are asked in the shadow before any traffic; 0 is none.
        platform: The platform as JSON.
        run_id: Id of the run.

    Returns:
        decision: promote, hold or rollback.
    """
    from kfp_flywheel.components.rollout.stage import run

    return run(
        *(release.path, champion.path, report.path, page.path, config, platform, run_id, links.path), endpoint=endpoint,
        ready_timeout_s=ready_timeout_s, canary_steps=canary_steps, step_requests=step_requests,
        max_requests=max_requests, max_seconds=max_seconds, look_s=look_s, error_margin=error_margin,
        slow_margin=slow_margin, replays=replays,
    )  # fmt: skip
