"""The contract of resolve."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def resolve(
    champion: dsl.Output[dsl.Artifact],
    parameters: str = "",
    endpoint: str = "detector",
    platform: str = "",
    run_id: str = "",
) -> str:
    """Find out who serves an endpoint, and check every parameter of the run before anything is started.

    Args:
        champion: Resolution manifest: the endpoint's champion, if it has one.
        parameters: Lines NAME=VALUE of all parameters of the pipeline; empty to use this component alone.
        endpoint: Name of the endpoint.
        platform: The platform as JSON.
        run_id: Id of the run.

    Returns:
        config: Id of the run's configuration: its checked parameters and the version of the code.
    """
    from kfp_flywheel.components.resolve.stage import run

    return run(champion.path, parameters, endpoint, platform, run_id)
