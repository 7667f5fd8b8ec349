"""The contract of notify."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def notify(
    status: dsl.PipelineTaskFinalStatus,
    pipeline: str,
    steps: str = "",
    endpoint: str = "detector",
    platform: str = "",
    run_id: str = "",
) -> None:
    """Tell people how a run went: the exit task of a pipeline, `with dsl.ExitHandler(notify(...))`.

    Args:
        status: How the run ended; KFP fills it in.
        pipeline: Name of the pipeline.
        steps: Its steps in order, with spaces between: of a step that died, nothing else tells.
        endpoint: Name of the endpoint that the run is about.
        platform: The platform as JSON; its `notify` lists the ways to people.
        run_id: Id of the run.
    """
    from kfp_flywheel.components.notify.stage import run

    return run(status.state, pipeline, steps, endpoint, platform, run_id)
