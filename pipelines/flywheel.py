"""The flywheel: from a source of images to a served detector, with every decision on the way."""

from kfp import dsl

from ..components.evaluate.component import evaluate
from ..components.ingest.component import ingest
from ..components.notify.component import notify
from ..components.register.component import register
from ..components.resolve.component import resolve
from ..components.rollout.component import rollout
from ..components.runtime import config
from ..components.snapshot.component import snapshot
from ..components.train.component import train
from ..components.validate.component import validate
from .describe import described


@dsl.pipeline(name="flywheel")
@described
def flywheel(
    source: str,
    max_bad_fraction: float = 0.05,
    max_megapixels: float = 50.0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str = "",
    grow_from: str = "nothing",
    architecture: str = "yolo11n",
    image_size: int = 640,
    epochs: int = 50,
    batch: int = 16,
    learning_rate: float = 2e-3,
    class_gain: float = 0.5,
    mosaic: float = 1.0,
    flip: float = 0.5,
    scale: float = 0.5,
    workers: int = 1,
    cpus_per_worker: int = 2,
    gpus_per_worker: int = 0,
    seed: int = 0,
    start_from: str = "scratch",
    min_map50: float = 0.5,
    min_class_map50: float = 0.1,
    margin: float = 0.02,
    min_images: int = 30,
    old_margin: float = 0.03,
    max_latency_ms: float = 1000.0,
    max_size_mb: float = 500.0,
    model: str = "detector",
    endpoint: str = "detector",
    ready_timeout_s: float = 300.0,
    canary_steps: str = "10,50,100",
    step_requests: int = 100,
    max_requests: int = 10_000,
    max_seconds: float = 3600.0,
    look_s: float = 1.0,
    error_margin: float = 0.01,
    slow_margin: float = 0.05,
    replays: int = 200,
    platform: str = "",
) -> None:
    """Collect, check, version, train, judge, register and serve a detector; stop early where nothing is new."""
    given = dict(locals())
    # A lone output is called Output: kfp.local finds no other name in a condition, and takes it for false in silence.
    common = {"platform": platform, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}

    def of(section: type[config.Section]) -> dict[str, object]:
        return {name: given[name] for name in section.__struct_fields__}

    # Lines, not JSON: a pipeline parameter inside a dict loses its type, and a quotation mark in it breaks the JSON.
    parameters = "\n".join(f"{name}={given[name]}" for name in config.names_of(config.FLYWHEEL))
    steps = "resolve ingest validate snapshot train evaluate register rollout"
    told = notify(pipeline="flywheel", steps=steps, endpoint=endpoint, **common).set_caching_options(False)

    with dsl.ExitHandler(told, name="steps"):
        resolved = resolve(parameters=parameters, endpoint=endpoint, **common).set_caching_options(False)
        start = {"champion": resolved.outputs["champion"]}
        configuration = {"config": resolved.outputs["Output"]}

        batch_read = ingest(**of(config.Ingest), **common).after(resolved).set_caching_options(False)
        checked = validate(batch=batch_read.outputs["batch"], **of(config.Validate), **common)
        checked.set_caching_options(False)
        clean = {"clean": checked.outputs["clean"]}
        data = snapshot(**clean, **start, **of(config.Snapshot), **configuration, **common)
        data.set_caching_options(False)

        with dsl.If(data.outputs["Output"] == "new", name="new-data"):
            dataset = {"dataset": data.outputs["dataset"]}
            trained = train(**dataset, **start, **of(config.Train), **common).set_caching_options(False)
            package = {"package": trained.outputs["package"]}
            judged = evaluate(**package, **start, **dataset, **of(config.Evaluate), **configuration, **common)
            judged.set_caching_options(False)

            with dsl.If(judged.outputs["Output"] == "pass", name="passed-the-gate"):
                registered = register(**package, report=judged.outputs["report"], **of(config.Register), **common)
                registered.set_caching_options(False)
                release = {"release": registered.outputs["release"]}
                rollout(**release, **start, **of(config.Rollout), **configuration, **common).set_caching_options(False)
