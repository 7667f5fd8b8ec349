"""KFP contract of evaluate."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def evaluate(
    package: dsl.Input[dsl.Model], champion: dsl.Input[dsl.Artifact], dataset: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.Artifact], page: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics],
    config: str, min_map50: float = 0.5,
    min_class_map50: float = 0.1, margin: float = 0.02, min_images: int = 30, old_margin: float = 0.03,
    max_latency_ms: float = 1000.0, max_size_mb: float = 500.0, platform: str = "", run_id: str = "",
) -> str:  # fmt: skip
    """Judge a model package, and the champion, on frozen holdouts as they are served: on ONNX Runtime.

    Where the data grew from the champion's, better on the new holdout, and not inferior on the older ones.

    Args:
        package: ModelPackage of the challenger.
        champion: Resolution, with the endpoint's champion.
        dataset: DatasetVersion with its own holdout, and those that it inherited.
        report: Receives the EvalReport.
        page: Receives the page for a person.
        metrics: Receives the challenger's numbers.
        config: Id of the run's configuration.
        min_map50: mAP50 below which the gate fails, 0 to 1.
        min_class_map50: AP50 of the worst class below which the gate fails, 0 to 1.
        margin: Loss of mAP50 against the champion that is still not inferior, 0 to 1.
        min_images: Holdout images below which nothing is decided.
        old_margin: Loss of mAP50 on an older holdout that is still not inferior, 0 to 1.
        max_latency_ms: Median time of one image on one thread, in milliseconds.
        max_size_mb: Size of the exported model, in megabytes.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.

    Returns:
        decision: pass, fail or undecided.
    """
    from kfp_flywheel.components.evaluate.stage import run

    return run(
        package.path, champion.path, dataset.path, report.path, page.path, config, min_map50, min_class_map50,
        margin, min_images, old_margin, max_latency_ms, max_size_mb, platform, run_id, metrics.log_metric,
    )  # fmt: skip
