"""The contract of recall."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def recall(  # type: ignore[no-untyped-def]
    release: dsl.Output[dsl.Artifact], model: str = "detector", version: str = "", platform: str = "", run_id: str = ""
):
    """Find a release that was registered before, to roll it out.

    Args:
        release: Receives the Release.
        model: Name in the registry.
        version: Number in the registry; empty is the highest.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.
    """
    from kfp_flywheel.components.recall.stage import run

    return run(release.path, model, version, platform, run_id)
