"""Batch prediction in pods: each image once, as the package sees it here, after a kill too."""

from pathlib import Path

import boto3
import pytest
from kfp_flywheel.components.predict.spec import PredictSpec
from kfp_flywheel.components.runtime.config import Platform

from tests import servers
from tests.predicting import Ran, without
from tests.tiny import tiny_images
from tests.waiting import wait_for

from .test_faults import left

IMAGES = {f"{number:02d}.png": content for number, content in enumerate(tiny_images(20))} | {"20.png": b"no image"}


@pytest.fixture
def bucket(cluster_platform: Platform, namespace: str) -> str:
    """The images, where pods reach them."""
    for name, content in IMAGES.items():
        boto3.client("s3").put_object(Bucket=servers.BUCKET, Key=f"{namespace}-images/{name}", Body=content)
    return f"s3://{servers.BUCKET}/{namespace}-images"


@pytest.mark.faults
def test_pods_predict_a_bucket(cluster_platform: Platform, bucket: str, namespace: str, tmp_path: Path) -> None:
    ran = Ran(tmp_path, cluster_platform)
    ran.step(bucket)
    assert (ran.made.count, ran.made.bad, len(ran.made.parts)) == (21, 1, 6)
    assert without(ran.rows, "sha256", "error") == ran.asked(IMAGES)
    wait_for(lambda: left(namespace) == [], 60)


@pytest.mark.faults
def test_killed_in_its_pod_it_goes_on_with_what_is_missing(
    cluster_platform: Platform, bucket: str, tmp_path: Path
) -> None:
    pods = cluster_platform.pods
    dying = Ran(tmp_path, cluster_platform.but(pods=pods.but(env=pods.env | {"DIES_AFTER": "2"})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictSpec, "MODULE", "tests.predicting")
        with pytest.raises(SystemExit) as ended:
            dying.step(bucket)
    assert ended.value.code == 3
    before = set(dying.store.list("batches/parts/"))
    assert len(before) == 2

    ran = Ran(tmp_path, cluster_platform)
    ran.step(bucket)
    assert before < {part.blob.uri.removeprefix(f"{ran.store.root}/") for part in ran.made.parts}
    assert without(ran.rows, "sha256", "error") == ran.asked(IMAGES)
