"""What a person may set: one frozen section a stage, and the platform. Fields are named like pipeline parameters."""

import difflib
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import msgspec
from msgspec import Meta

from .artifacts import content_id
from .errors import UserError
from .records import Record

Fraction = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
MaxBad = Annotated[Fraction, "Share of bad items above which the run stops"]
Endpoint = Annotated[Name, "Name of the endpoint"]
Model = Annotated[Name, "Name in the registry"]
Workers = Annotated[int, Meta(ge=1, le=1024), "Ray workers"]
CpusPerWorker = Annotated[int, Meta(ge=1, le=1024), "CPUs, and threads, of a worker"]
REQUIRED = msgspec.NODEFAULT


class Section(Record):
    @classmethod
    def of(cls, **values: object) -> Self:
        """Validate values that a person gave; numbers may come as text, as KFP hands them on.

        Raises:
            UserError: Names the parameter, the value and the limit.
        """
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            raise _explained(cls, values, str(error)) from error

    @property
    def id(self) -> str:
        return content_id(self.plain())


def _explained(section: type[Section], values: Mapping[str, object], problem: str) -> UserError:
    limit, _, place = problem.partition(" - at `$.")
    name = place.rstrip("`") or limit.partition("`")[2].partition("`")[0]
    shown = f"{name} is {values[name]!r}: {limit[0].lower()}{limit[1:]}." if name in values else f"{limit}."
    return UserError(shown, f"correct {name or section.__name__.lower()} and start the run again")


@dataclass(frozen=True)
class Parameter:
    """What a person reads about one field of a section. `default` may be REQUIRED."""

    name: str
    default: Any
    description: str


def parameters_of(section: type[Section]) -> Iterator[Parameter]:
    """The fields of a section, in order."""
    for field in msgspec.structs.fields(section):
        description = next(extra for extra in typing.get_args(field.type) if isinstance(extra, str))
        yield Parameter(field.name, field.default, description)


class Ingest(Section):
    source: Annotated[str, Meta(min_length=1), "Folder or data.yaml of a YOLO data set: a path or a URI"]


class Validate(Section):
    max_bad_fraction: MaxBad = 0.05
    max_megapixels: Annotated[float, Meta(gt=0, le=10_000), "Larger images are refused before they are decoded"] = 50.0


class Snapshot(Section):
    val_fraction: Annotated[float, Meta(gt=0, lt=0.5), "Share of unassigned groups that go to validation"] = 0.15
    test_fraction: Annotated[float, Meta(gt=0, lt=0.5), "Share of unassigned groups that go to the holdout"] = 0.15
    group_pattern: Annotated[str, "Regular expression on the path whose first group names the sample's group"] = ""
    grow_from: Annotated[
        Literal["nothing", "champion"], "nothing, or champion: its data stays, the new images are added to it"
    ] = "nothing"

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.group_pattern).groups
        except re.error as error:
            raise ValueError(f"`group_pattern` is not a regular expression: {error}") from error
        if self.group_pattern and groups < 1:
            raise ValueError("`group_pattern` needs one group in parentheses")


class Train(Section):
    architecture: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]+$"), "narrow, or the name of an ultralytics architecture"
    ] = "yolo11n"
    image_size: Annotated[int, Meta(ge=32, le=4096, multiple_of=32), "Side of the square input, in pixels"] = 640
    epochs: Annotated[int, Meta(ge=1, le=10_000), "Passes over the training images"] = 50
    batch: Annotated[int, Meta(ge=1, le=4096), "Images a step, over all workers"] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=1), "AdamW's initial learning rate"] = 2e-3
    class_gain: Annotated[float, Meta(gt=0, le=100), "Weight of the classification loss"] = 0.5
    mosaic: Annotated[Fraction, "Probability of mosaic augmentation"] = 1.0
    flip: Annotated[Fraction, "Probability of a horizontal flip"] = 0.5
    scale: Annotated[Fraction, "Range of random scaling"] = 0.5
    workers: Workers = 1
    cpus_per_worker: CpusPerWorker = 2
    gpus_per_worker: Annotated[int, Meta(ge=0, le=16), "GPUs of a worker"] = 0
    seed: Annotated[int, Meta(ge=0, lt=2**31), "Seed of initial weights and of the order of images"] = 0
    start_from: Annotated[Literal["scratch", "champion"], "scratch, or champion: its checkpoint"] = "scratch"


class Evaluate(Section):
    min_map50: Annotated[Fraction, "mAP50 on the holdout below which the gate fails"] = 0.5
    min_class_map50: Annotated[Fraction, "AP50 of the worst class below which the gate fails"] = 0.1
    margin: Annotated[Fraction, "Loss of mAP50 against the champion that is still not inferior"] = 0.02
    min_images: Annotated[int, Meta(ge=1), "Holdout images below which nothing is decided"] = 30
    old_margin: Annotated[Fraction, "Loss of mAP50 on an older holdout that is still not inferior"] = 0.03
    max_latency_ms: Annotated[float, Meta(gt=0, le=1e6), "Median time of one image on one thread"] = 1000.0
    max_size_mb: Annotated[float, Meta(gt=0, le=1e6), "Size of the exported model"] = 500.0


class Register(Section):
    model: Model = "detector"


class Recall(Section):
    model: Model = "detector"
    version: Annotated[str, Meta(pattern="^[0-9]*$"), "Number in the registry; empty is the highest"] = ""


class Rollout(Section):
    endpoint: Endpoint = "detector"
    ready_timeout_s: Annotated[float, Meta(gt=0, le=86_400), "Seconds a new version may take to answer"] = 300.0
    canary_steps: Annotated[
        str,
        Meta(pattern=r"^[0-9]{1,3}(,[0-9]{1,3})*$"),
        "Canary's shares of the traffic in percent; 0 is copies of requests",
    ] = "10,50,100"
    step_requests: Annotated[int, Meta(ge=1, le=10**9), "Canary's requests before its share grows"] = 100
    max_requests: Annotated[int, Meta(ge=1, le=10**9), "Requests after which an undecided canary goes"] = 10_000
    max_seconds: Annotated[float, Meta(gt=0, le=2_592_000), "Seconds after which an undecided canary goes"] = 3600.0
    look_s: Annotated[float, Meta(gt=0, le=3600), "Seconds between two looks at the canary"] = 1.0
    error_margin: Annotated[
        float, Meta(gt=0, lt=1), "Failed answers beyond the stable's, as a share, still allowed"
    ] = 0.01
    slow_margin: Annotated[float, Meta(gt=0, lt=1), "Slow answers beyond the stable's, as a share, still allowed"] = (
        0.05
    )
    replays: Annotated[int, Meta(ge=0, le=100_000), "Recorded images asked in the shadow, before any traffic"] = 200

    def __post_init__(self) -> None:
        rising = list(self.shares) == sorted(set(self.shares))
        if not self.shares or not rising or self.shares[-1] > 99:
            raise ValueError("`canary_steps` are not rising shares between 0 and 100, one of them below 100")

    @property
    def shares(self) -> tuple[int, ...]:
        """The canary's shares below 100 percent: with 100 it is the champion, and there is nothing to compare.

        With 0 it is in the shadow: it is sent a copy of each request, and nobody gets its answers.
        """
        return tuple(share for share in map(int, self.canary_steps.split(",")) if share != 100)


class Monitor(Section):
    endpoint: Endpoint = "detector"
    window: Annotated[int, Meta(ge=20, le=100_000), "Requests that are judged together"] = 200
    detector: Annotated[Literal["ks+mmd", "alibi-ks", "alibi-mmd"], "Test of drift; alibi's need the extra monitor"] = (
        "ks+mmd"
    )
    drift_alpha: Annotated[float, Meta(gt=0, lt=0.5), "False alarms on windows without a change, as a share"] = 0.01
    harm_drop: Annotated[float, Meta(gt=0, lt=1), "Estimated loss of mAP50 that is harm"] = 0.05
    cooldown_s: Annotated[float, Meta(ge=0, le=31_536_000), "Seconds between two requests for labels"] = 86_400.0
    budget: Annotated[int, Meta(ge=0, le=1000), "Requests for labels in 30 days, at most"] = 4
    retrain_with: Annotated[str, "Lines NAME=VALUE: parameters of the retraining"] = ""


class Choice(Section):
    """Which model predicts a batch."""

    model_version: Annotated[
        str, Meta(pattern="^[0-9]*$"), "Number in the registry; empty is the champion of the endpoint"
    ] = ""
    model: Model = "detector"
    endpoint: Endpoint = "detector"


class Predict(Section):
    images: Annotated[str, Meta(min_length=1), "Folder of images, or Parquet: a path or a URI"]
    image_column: Annotated[str, Meta(min_length=1), "Parquet's column of image files' bytes"] = "image"
    id_column: Annotated[str, Meta(min_length=1), "Parquet's column that names an image"] = "path"
    shard_images: Annotated[int, Meta(ge=1, le=100_000), "Images whose predictions are written as one object"] = 256
    images_at_once: Annotated[int, Meta(ge=1, le=10_000), "Images that a worker is handed at a time"] = 16
    workers: Workers = 1
    cpus_per_worker: CpusPerWorker = 2
    max_bad_fraction: MaxBad = 0.05


FLYWHEEL: tuple[type[Section], ...] = (Ingest, Validate, Snapshot, Train, Evaluate, Register, Rollout)
SECTIONS: tuple[type[Section], ...] = (*FLYWHEEL, Recall, Monitor, Choice, Predict)
PARAMETERS = {parameter.name: parameter for section in SECTIONS for parameter in parameters_of(section)}


def names_of(sections: tuple[type[Section], ...]) -> tuple[str, ...]:
    """The parameters of some sections, in order, each once."""
    return tuple(dict.fromkeys(name for section in sections for name in section.__struct_fields__))


def check(parameters: Mapping[str, object], sections: tuple[type[Section], ...] = FLYWHEEL) -> dict[str, Any]:
    """Validate a run's parameters all at once, defaults filled in, before anything is started.

    Args:
        sections: Of the pipeline.

    Raises:
        UserError: An unknown name or a value out of its limits.
    """
    known = names_of(sections)
    for name in parameters:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "flywheel run --help lists the parameters"
            raise UserError(f"{name} is not a parameter.", hint)
    checked: dict[str, Any] = {}
    for section in sections:
        values = {name: parameters[name] for name in section.__struct_fields__ if name in parameters}
        checked |= section.of(**values).plain()
    return checked


def _empty(kind: type) -> Any:
    return msgspec.field(default_factory=kind)


class Pods(Section):
    """What the pods have in common that we make on a cluster. Secrets come by name, never by value."""

    service_account: Annotated[str, "Service account: the identity towards the store"] = "default"
    env: Annotated[dict[str, str], "Environment variables"] = _empty(dict)
    secrets: Annotated[dict[str, tuple[str, ...]], "Secrets, and which of their keys become environment variables"] = (
        _empty(dict)
    )
    pull_secrets: Annotated[tuple[str, ...], "Secrets of the registry of images"] = ()
    image_pull_policy: Annotated[Literal["IfNotPresent", "Always", "Never"], "When nodes pull images"] = "IfNotPresent"
    node_selector: Annotated[dict[str, str], "Labels that a worker's node must have"] = _empty(dict)
    tolerations: Annotated[tuple[dict[str, Any], ...], "Taints that workers tolerate; GPUs' are added"] = ()
    labels: Annotated[dict[str, str], "Labels; kueue.x-k8s.io/queue-name puts jobs into a queue of Kueue"] = _empty(
        dict
    )
    host_paths: Annotated[tuple[str, ...], "Folders of the node, mounted read-only at the same path"] = ()
    worker_memory: Annotated[str, "Memory of a training worker"] = "8Gi"
    server_memory: Annotated[str, "Memory of a model server"] = "1Gi"
    server_cpu: Annotated[str, "CPU that a model server asks for"] = "200m"
    min_replicas: Annotated[int, Meta(ge=1, le=1000), "Pods of each version; from two on, a drain fails no request"] = 1
    max_replicas: Annotated[int, Meta(ge=0, le=1000), "Pods of each version at most; 0 is min_replicas"] = 0
    target_cpu: Annotated[int, Meta(ge=1, le=100), "Share of its CPU, in percent, at which a version gets pods"] = 70
    head_memory: Annotated[str, "Memory of a Ray head"] = "3Gi"
    shared_memory: Annotated[str, "Size of /dev/shm"] = "2Gi"
    min_workers: Annotated[int | None, "Workers at the start, if Ray is to scale them up to the job's number"] = None
    ray_token: Annotated[bool, "Ray asks for a token: needs KubeRay 1.5 or later"] = False
    wait_s: Annotated[float, Meta(ge=0, le=1e7), "Seconds to wait for quota or nodes; 0 is without end"] = 1800.0

    def __post_init__(self) -> None:
        if self.max_replicas and self.max_replicas < self.min_replicas:
            raise ValueError(f"`max_replicas` is {self.max_replicas}, less than min_replicas, {self.min_replicas}")

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.min_replicas

    @property
    def scales(self) -> bool:
        """Whether the number of a version's pods follows its load."""
        return self.most_replicas > self.min_replicas


class StepPods(Section):
    """Settings of the pods that Kubeflow Pipelines makes for a stage."""

    cpu: Annotated[str, Meta(pattern=r"^([0-9.]+m?)?$"), "CPU, as 500m or 2; empty leaves it to the cluster"] = ""
    memory: Annotated[
        str, Meta(pattern=r"^([0-9.]+[EPTGMK]i?)?$"), "Memory, as 2Gi; empty leaves it to the cluster"
    ] = ""
    timeout_s: Annotated[int, Meta(ge=0, le=31_536_000), "Seconds after which Kubeflow ends the pod; 0 is never"] = 0
    labels: Annotated[dict[str, str], "Labels of the pod"] = _empty(dict)
    node_selector: Annotated[dict[str, str], "Labels that its node must have"] = _empty(dict)
    tolerations: Annotated[tuple[dict[str, Any], ...], "Taints that it tolerates"] = ()
    volumes: Annotated[dict[str, str], "PersistentVolumeClaims, and where each is mounted"] = _empty(dict)


class Gateway(Section):
    """The gateway before the model servers of a cluster."""

    address: Annotated[str, Meta(pattern="^https?://"), "Where it answers, http://HOST:PORT"]
    name: Annotated[str, "The Gateway, NAMESPACE/NAME"] = "kserve/kserve-ingress-gateway"
    hosts: Annotated[tuple[str, ...], "Host names to serve; none is all of the gateway's"] = ()
    mode: Annotated[
        Literal["standard", "knative"], "KServe's mode; in knative endpoints get their own addresses from Knative"
    ] = "standard"


class Platform(Section):
    """Where a run works. Only URIs differ between a laptop and a cluster."""

    store: Annotated[str, Meta(pattern=r"^(file:///|(s3|gs)://[a-z0-9])"), "file:///folder, s3://bucket or gs://bucket"]
    jobs: Annotated[str, Meta(pattern=r"^(local://|rayjob://[a-z0-9][-a-z0-9]*)$"), "local:// or rayjob://NAMESPACE"]
    serving: Annotated[
        str,
        Meta(pattern=r"^(local:///|kserve://[a-z0-9][-a-z0-9]*$)"),
        "local:///absolute/folder or kserve://NAMESPACE",
    ]
    tracking: Annotated[str, Meta(min_length=1), "An MLflow tracking URI"]
    telemetry: Annotated[
        str,
        Meta(pattern=r"^(|local:///.*|prometheus\+https?://.+)$"),
        "local:///folder, where serving is, or prometheus+http://HOST:PORT; none: no canary is judged",
    ] = ""
    runs: Annotated[
        str,
        Meta(pattern=r"^(|local:///.*|kfp\+https?://[^/?]+.*)$"),
        "local:///folder, for flywheel watch, or kfp+http://HOST:PORT?namespace=NAME&token=ENV&ui=URL; or none",
    ] = ""
    landing: Annotated[
        str, Meta(pattern=r"^(|(file:///|(s3|gs)://[a-z0-9]).*)$"), "Where images wait for labels: like store; or none"
    ] = ""
    notify: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^(log://|(webhook|slack)://[A-Za-z_][A-Za-z0-9_]*)$")], ...],
        "log://, webhook://ENV or slack://ENV: ENV holds the address, a secret",
    ] = ()
    log_share: Annotated[Fraction, "Share of the requests that the prediction log keeps"] = 1.0
    images: Annotated[dict[str, str], "Image of each profile: steps, train, serve, monitor"] = _empty(dict)
    pods: Annotated[Pods, "Settings of the pods that are made on a cluster"] = Pods()
    steps: Annotated[dict[str, StepPods], "Settings of Kubeflow's pods by stage; those of `all` hold for each"] = (
        _empty(dict)
    )
    gateway: Annotated[Gateway | None, "The gateway of the cluster; kserve:// needs it"] = None

    def __post_init__(self) -> None:
        if self.serving_namespace and self.gateway is None:
            raise ValueError("`gateway` is missing: kserve:// needs its address")

    @property
    def jobs_namespace(self) -> str:
        """Of the cluster's jobs; empty where jobs run here."""
        return self.jobs.partition("rayjob://")[2]

    @property
    def serving_namespace(self) -> str:
        """Of the cluster's endpoints; empty where they are served here."""
        return self.serving.partition("kserve://")[2]

    @property
    def steps_namespace(self) -> str:
        """Of Kubeflow's pods, as `runs` tells: that of its API server, or the user's where it serves many."""
        return self.steps_account.partition(":")[0]

    @property
    def steps_account(self) -> str:
        """The account that Kubeflow's pods have by themselves, NAMESPACE:NAME; empty where steps run here."""
        parts = urlsplit(self.runs)
        if not parts.scheme.startswith("kfp"):
            return ""
        if mine := parse_qs(parts.query).get("namespace"):
            return f"{mine[-1]}:default-editor"
        service, _, rest = (parts.hostname or "").partition(".")
        home = rest.partition(".")[0] if service == "ml-pipeline" else ""
        return f"{home or 'kubeflow'}:pipeline-runner"

    @property
    def namespaces(self) -> list[str]:
        """Those of a cluster that we work in; none on one machine."""
        return sorted({self.jobs_namespace, self.serving_namespace} - {""})

    @classmethod
    def local(cls, folder: Path) -> Self:
        """Everything in one folder of this machine."""
        root = folder.absolute()
        return cls.of(
            store=f"file://{root}/store",
            jobs="local://",
            serving=f"local://{root}/serving",
            tracking=f"sqlite:///{root}/mlflow.db",
            telemetry=f"local://{root}/serving",
            runs=f"local://{root}/queue",
            landing=f"file://{root}/landing",
            notify=("log://",),
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the parameter `platform`.

        Raises:
            UserError: It is empty or not a platform.
        """
        remedy = "flywheel compile --platform FILE fills it in"
        if not text:
            raise UserError("platform is empty: a step knows no backend by itself.", remedy)
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"platform is not JSON: {error}.", remedy) from error
        return cls.of(**values) if isinstance(values, dict) else cls.of(platform=values)


def image() -> str:
    """The image that this process runs in; images set FLYWHEEL_IMAGE."""
    return os.environ.get("FLYWHEEL_IMAGE", "local")
