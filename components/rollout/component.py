"""The contract of rollout."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def rollout(
    release: dsl.Input[dsl.Artifact],
    champion: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
    config: str,
    endpoint: str = "detector",
    ready_timeout_s: float = 300.0,
    platform: str = "",
    run_id: str = "",
) -> str:
    """Make a release the champion of its endpoint, and wait until the endpoint truly answers with it.

    Args:
        release: Release manifest: what is to be served.
        champion: Resolution manifest: the champion that the release was judged against.
        report: RolloutReport manifest.
        config: Id of the run's configuration, from resolve.
        endpoint: Name of the endpoint.
        ready_timeout_s: Seconds that the endpoint may take to answer with the release.
        platform: The platform as JSON.
        run_id: Id of the run.

    Returns:
        decision: promote, or hold.
    """
    from kfp_flywheel.components.rollout.stage import run

    return run(release.path, champion.path, report.path, config, endpoint, ready_timeout_s, platform, run_id)
