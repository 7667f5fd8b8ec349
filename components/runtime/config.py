"""What a person may set: one frozen section a stage, and the platform. Fields are named like pipeline parameters."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .artifacts import content_id
from .errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @classmethod
    def of(cls, **values: object) -> Self:
        """Validate values that a person gave.

        Raises:
            UserError: Names the parameter, the value and the limit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or cls.__name__.lower()
            raise UserError(
                f"{name} is {first['input']!r}: {first['msg']}.", f"correct {name} and start the run again"
            ) from error

    @property
    def id(self) -> str:
        return content_id(self.model_dump(mode="json"))


class Ingest(Section):
    source: str = Field(min_length=1, description="Folder or data.yaml of a YOLO data set: a path or a URI")


class Validate(Section):
    max_bad_fraction: Fraction = Field(0.05, description="Share of bad items above which the run stops")
    max_megapixels: float = Field(50.0, gt=0, description="Larger images are refused before they are decoded")


class Snapshot(Section):
    val_fraction: float = Field(0.15, gt=0, lt=0.5, description="Share of unassigned groups that go to validation")
    test_fraction: float = Field(0.15, gt=0, lt=0.5, description="Share of unassigned groups that go to the holdout")
    group_pattern: str = Field(
        "", description="Regular expression on the path whose first group names the sample's group"
    )

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            compiled = re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        if value and compiled.groups < 1:
            raise ValueError("needs one group in parentheses")
        return value


class Train(Section):
    architecture: str = Field(
        "yolo11n", pattern=r"^[A-Za-z0-9._-]+$", description="narrow, or the name of an ultralytics architecture"
    )
    image_size: int = Field(640, ge=32, le=4096, multiple_of=32, description="Side of the square input, in pixels")
    epochs: int = Field(50, ge=1, le=10_000, description="Passes over the training images")
    batch: int = Field(16, ge=1, le=4096, description="Images a step, over all workers")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="AdamW's initial learning rate")
    class_gain: float = Field(0.5, gt=0, le=100, description="Weight of the classification loss")
    mosaic: Fraction = Field(1.0, description="Probability of mosaic augmentation")
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip")
    scale: Fraction = Field(0.5, description="Range of random scaling")
    workers: int = Field(1, ge=1, le=1024, description="Ray Train workers")
    cpus_per_worker: int = Field(2, ge=1, le=1024, description="CPUs, and threads, of a worker")
    gpus_per_worker: int = Field(0, ge=0, le=16, description="GPUs of a worker")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initial weights and of the order of images")
    start_from: str = Field(
        "scratch", pattern="^(scratch|champion)$", description="scratch, or champion: its checkpoint"
    )


class Evaluate(Section):
    min_map50: Fraction = Field(0.5, description="mAP50 on the holdout below which the gate fails")
    min_class_map50: Fraction = Field(0.1, description="AP50 of the worst class below which the gate fails")
    margin: Fraction = Field(0.02, description="Loss of mAP50 against the champion that is still not inferior")
    min_images: int = Field(30, ge=1, description="Holdout images below which nothing is decided")
    max_latency_ms: float = Field(1000.0, gt=0, description="Median time of one image on one thread")
    max_size_mb: float = Field(500.0, gt=0, description="Size of the exported model")


class Register(Section):
    model: str = Field("detector", pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", description="Name in the registry")


class Rollout(Section):
    endpoint: str = Field(
        "detector", pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", description="Name of the endpoint"
    )
    ready_timeout_s: float = Field(300.0, gt=0, le=86_400, description="Seconds a new version may take to answer")


SECTIONS: tuple[type[Section], ...] = (Ingest, Validate, Snapshot, Train, Evaluate, Register, Rollout)
PARAMETERS = {name: section for section in SECTIONS for name in section.model_fields}


def check(parameters: Mapping[str, object]) -> dict[str, Any]:
    """Validate a run's parameters all at once, defaults filled in, before anything is started.

    Raises:
        UserError: An unknown name or a value out of its limits.
    """
    for name in parameters:
        if name not in PARAMETERS:
            close = difflib.get_close_matches(name, PARAMETERS, 1)
            hint = f"did you mean {close[0]}?" if close else "flywheel run --help lists the parameters"
            raise UserError(f"{name} is not a parameter.", hint)
    checked: dict[str, Any] = {}
    for section in SECTIONS:
        values = {name: parameters[name] for name in section.model_fields if name in parameters}
        checked |= section.of(**values).model_dump()
    return checked


class Platform(Section):
    """Where a run works. Only URIs differ between a laptop and a cluster."""

    store: str = Field(pattern=r"^file:///", description="file:///absolute/folder")
    jobs: str = Field(pattern=r"^local://$", description="local://")
    serving: str = Field(pattern=r"^local:///", description="local:///absolute/folder")
    tracking: str = Field(min_length=1, description="An MLflow tracking URI")
    images: dict[str, str] = Field({}, description="Image of each profile: steps, train, serve, monitor")

    @classmethod
    def local(cls, folder: Path) -> Self:
        """Everything in one folder of this machine."""
        root = folder.absolute()
        return cls.of(
            store=f"file://{root}/store",
            jobs="local://",
            serving=f"local://{root}/serving",
            tracking=f"sqlite:///{root}/mlflow.db",
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
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
