"""KFP contract of snapshot."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def snapshot(
    clean: dsl.Input[dsl.Dataset],
    champion: dsl.Input[dsl.Artifact],
    dataset: dsl.Output[dsl.Dataset],
    config: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str = "",
    grow_from: str = "nothing",
    platform: str = "",
    run_id: str = "",
) -> str:
    """Freeze a data version: given splits are kept, unassigned samples are divided by a hash of their group.

    Args:
        clean: A CleanBatch.
        champion: The Resolution that names the champion, whose data may be added to.
        dataset: Receives the DatasetVersion.
        config: Id of the run's configuration: an outcome that stands for it and this data ends the run early.
        val_fraction: Share of unassigned groups that go to validation, 0 to 0.5.
        test_fraction: Share of unassigned groups that go to the holdout, 0 to 0.5.
        group_pattern: Regular expression on the path whose first group names the sample's group.
        grow_from: nothing, or champion: its data version keeps its splits and holdouts, the new images are added.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.

    Returns:
        new, or decided if the outcome for this data and configuration is known.
    """
    from kfp_flywheel.components.snapshot.stage import run

    return run(
        *(clean.path, champion.path, dataset.path, config),
        *(val_fraction, test_fraction, group_pattern, grow_from),
        *(platform, run_id),
    )
