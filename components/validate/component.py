"""KFP contract of validate."""

from kfp import dsl

from ..runtime import images


@dsl.component(base_image=images.STEPS, install_kfp_package=False)
def validate(
    batch: dsl.Input[dsl.Dataset],
    clean: dsl.Output[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    max_bad_fraction: float = 0.05,
    max_megapixels: float = 50.0,
    platform: str = "",
    run_id: str = "",
) -> None:
    """Decode every image, check every label, and put what is unfit into quarantine with its reason.

    Args:
        batch: A RawBatch.
        clean: Receives the CleanBatch: samples that are fit to be used.
        page: Receives the pictures and reasons of what is not.
        max_bad_fraction: Share of bad items above which the run stops, 0 to 1.
        max_megapixels: Larger images are refused before they are decoded, in 10^6 pixels.
        platform: The platform's URIs as JSON; `flywheel compile` fills it in.
        run_id: Groups the records of one run.
    """
    from kfp_flywheel.components.validate.stage import run

    return run(batch.path, clean.path, page.path, max_bad_fraction, max_megapixels, platform, run_id)
