"""KFP contract of register."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def register(  # type: ignore[no-untyped-def]
    package: dsl.Input[dsl.Model],
    report: dsl.Input[dsl.Artifact],
    release: dsl.Output[dsl.Artifact],
    links: dsl.Output[dsl.Markdown],
    model: str = "detector",
    platform: str = "",
    run_id: str = "",
):
    """Make a version in the MLflow registry of a package that passed the gate; doing it twice is doing it once.

    Args:
        package: ModelPackage that was judged.
        report: EvalReport of this very package, with the decision pass.
        release: Receives the Release.
        links: Receives where the version is in MLflow.
        model: Name in the registry.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.
    """
    from kfp_flywheel.components.register.stage import run

    return run(package.path, report.path, release.path, model, platform, run_id, links.path)
