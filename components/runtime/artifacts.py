"""What stages hand to one another: small, versioned JSON manifests that point at immutable bulk data by URI.

An `id` is a hash of content alone, so the same input gives the same id on any machine; where and by what a thing was
made stands beside it, in `lineage`.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from .records import Record

Decision = Literal["pass", "fail", "undecided"]
Split = Literal["train", "val", "test"]
Box = tuple[int, float, float, float, float]
"""Class id, then centre x, centre y, width, height as fractions of the image (the YOLO convention)."""


def content_id(value: object) -> str:
    """Hash any JSON value: 16 hexadecimal digits of SHA-256 over its canonical text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Blob(Record):
    """Immutable bytes in a store: where they are, and what they must hash to."""

    uri: str
    sha256: str
    size: int


class Lineage(Record):
    """By what a thing was made: version and hash of the code, image, run and the ids of its inputs."""

    code: str
    image: str
    run: str
    parents: tuple[str, ...] = ()


class Manifest(Record):
    """Base of all artifacts that a stage gives. Written last: its presence means that all it points at is whole."""

    id: str
    lineage: Lineage

    def write(self, path: str | Path) -> None:
        """Write it where KFP expects the artifact."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the artifact that an earlier step gave.

        Raises:
            Corrupt: The file is not a manifest of this kind and version.
        """
        return cls.from_json(Path(path).read_bytes(), str(path))


class RawItem(Record):
    """One image as it was found: its path within the source, its bytes, the text of its label file, its given split."""

    path: str
    image: Blob
    label: str | None
    split: Split | None


class Sample(Record):
    """One image that is fit to be used. `image` is 8-bit, upright and RGB after decoding; sizes are in pixels.

    `group` names what must not be divided over splits (a scene, a camera, a patient).
    """

    path: str
    image: Blob
    width: int
    height: int
    boxes: tuple[Box, ...]
    split: Split | None
    group: str


class BadItem(Record):
    """One item in quarantine: which, why (a short code), and the sentence for a person. `image` may be undecodable."""

    path: str
    image: Blob | None
    reason: str
    detail: str


class Resolution(Manifest):
    """What a run starts from: the endpoint's champion, and the id of the run's configuration."""

    kind: Literal["resolution.v1"] = "resolution.v1"
    endpoint: str
    champion: "Release | None"
    config: str


class RawBatch(Manifest):
    """What was read. `watermark` hashes the listing (paths, sizes, digests); `index` is JSON lines of RawItem."""

    kind: Literal["raw-batch.v1"] = "raw-batch.v1"
    source: str
    watermark: str
    names: tuple[str, ...]
    count: int
    index: Blob


class CleanBatch(Manifest):
    """What is fit to be used: `index` is JSON lines of Sample, `quarantine` of BadItem, `rejected` counts by reason."""

    kind: Literal["clean-batch.v1"] = "clean-batch.v1"
    names: tuple[str, ...]
    count: int
    index: Blob
    rejected: dict[str, int]
    quarantine: Blob


class Holdout(Record):
    """The frozen test images of one data version: JSON lines of Sample."""

    dataset: str
    count: int
    index: Blob


class DatasetVersion(Manifest):
    """Content-addressed data. `index` is JSON lines of Sample, each with its split; `holdouts[0]` is its own."""

    kind: Literal["dataset.v1"] = "dataset.v1"
    names: tuple[str, ...]
    counts: dict[Split, int]
    index: Blob
    holdouts: tuple[Holdout, ...]


class Epoch(Record):
    """One line of the training curve."""

    epoch: int
    seconds: float
    metrics: dict[str, float]


class Checkpoint(Record):
    """Weights to train on from. `digest` hashes the fp32 parameters and buffers by name, in order."""

    blob: Blob
    digest: str


class ModelPackage(Manifest):
    """What is judged and what is served.

    `files` always has: `model.onnx` (outputs: raw predictions, pooled embedding), `config.json` (pre- and
    post-processing as data), `golden.npz` (encoded images, and the detections that the trainer saw for them) and
    `reference.npz` (monitoring reference: features, scores and embeddings of the holdout).
    """

    kind: Literal["package.v1"] = "package.v1"
    family: str
    names: tuple[str, ...]
    dataset: str
    files: dict[str, Blob]
    checkpoint: Checkpoint
    curve: tuple[Epoch, ...]
    tracking_run: str


class Check(Record):
    """One line of a gate: the value that was found, the limit, and what follows. Values may be missing, never NaN."""

    name: str
    value: float | None
    limit: float | None
    outcome: Decision
    sentence: str


class Scores(Record):
    """Accuracy of one package on one holdout (COCO definitions); a class without boxes has no AP."""

    map50: float | None
    map: float | None
    class_map50: dict[str, float | None]
    latency_ms: float
    size_mb: float


class OldHoldout(Record):
    """Both packages on the holdout of an older data version."""

    dataset: str
    images: int
    challenger_scores: Scores
    champion_scores: Scores | None


class EvalReport(Manifest):
    """The gate's decision and why.

    Args:
        agreement: F1 between the detections of challenger and champion, as they are served, of each holdout image that
            either sees something in: what is to be expected of this very pair. Empty without a champion.
        older: The same pair on the holdouts that the data version inherited.
    """

    kind: Literal["eval-report.v1"] = "eval-report.v1"
    decision: Decision
    reason: str
    package: str
    champion: str | None
    dataset: str
    images: int
    challenger_scores: Scores
    champion_scores: Scores | None
    checks: tuple[Check, ...]
    page: Blob
    agreement: tuple[float, ...] = ()
    older: tuple[OldHoldout, ...] = ()


class Release(Manifest):
    """A registered package that may be served. Its `package_uri` is the manifest of the ModelPackage."""

    kind: Literal["release.v1"] = "release.v1"
    model: str
    version: str
    package: str
    package_uri: str
    dataset: str
    report: str


class RolloutReport(Manifest):
    """What became of a release at its endpoint, and why.

    Args:
        checks: The evidence behind the decision; none for the first release of an endpoint.
        diary: Prefix, in the store, of all looks at the canary.
    """

    kind: Literal["rollout-report.v1"] = "rollout-report.v1"
    decision: Literal["promote", "hold", "rollback"]
    reason: str
    endpoint: str
    url: str
    release: str
    champion: str | None
    checks: tuple[Check, ...] = ()
    diary: str = ""
    page: Blob


class Drift(Record):
    """One test of a window against the reference.

    Args:
        name: Of the feature; class mix or embedding for what has many columns.
        test: ks, chi2 or mmd.
        statistic: In the test's own unit.
        p_value: Before the correction for many tests.
        drifted: After it.
    """

    name: str
    test: str
    statistic: float
    p_value: float
    drifted: bool


class MonitorReport(Manifest):
    """What a window of requests says about an endpoint.

    Args:
        decision: quiet; alert: it is different; retrain: it is different and hurts, labels were asked for; undecided:
            nothing is known.
        release: Of the champion that was watched; empty if there is none.
        first, last: When the window's first and last requests came, in seconds since the epoch.
        count: Requests in the window.
        tests: All tests of drift.
        confidence_drop: Relative fall of the mean confidence against the reference; None if it cannot be known.
        estimated_drop: Estimated loss of mAP50 against the holdout; None if it cannot be known.
        measured_drop: The same, measured on labels that arrived; None without any.
        request: Id of the request for labels that is open or was opened now; or empty.
        started: Names of the runs that were started now.
    """

    kind: Literal["monitor-report.v1"] = "monitor-report.v1"
    decision: Literal["quiet", "alert", "retrain", "undecided"]
    reason: str
    endpoint: str
    release: str
    at: float
    first: float
    last: float
    count: int
    tests: tuple[Drift, ...]
    confidence_drop: float | None
    estimated_drop: float | None
    measured_drop: float | None
    request: str
    started: tuple[str, ...]
    page: Blob


class LabelRequest(Record):
    """Images of an endpoint's requests that want labels.

    Args:
        id: Hash of endpoint, release and images.
        at: When it was opened, in seconds since the epoch.
        folder: URI under the landing place: `images/`, `labels/` (to be filled, YOLO format), `data.yaml`.
        images: File names in `images/`; the label of `NAME.jpg` is `labels/NAME.txt`, empty if there is no object.
    """

    id: str
    endpoint: str
    release: str
    at: float
    reason: str
    folder: str
    images: tuple[str, ...]


class Part(Record):
    """Predictions of some images, a Parquet file, a row an image: how many they are, and how many cannot be read."""

    blob: Blob
    count: int
    bad: int


class Predictions(Manifest):
    """What a package sees in every image of a source, each once, in the order of the listing.

    Args:
        release: Of the package; another release of the same package gives the same predictions.
        names: Of the classes.
        source: As it was given.
        listing: JSON lines of the shards: every file with its mark.
        found: Detections by class.
    """

    kind: Literal["predictions.v1"] = "predictions.v1"
    package: str
    release: str
    names: tuple[str, ...]
    source: str
    listing: Blob
    count: int
    bad: int
    parts: tuple[Part, ...]
    found: dict[str, int]
    page: Blob
