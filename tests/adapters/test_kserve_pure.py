"""What a version's InferenceService tells its model server, without a cluster."""

from kfp_flywheel.components.runtime.adapters.kserve.build import service
from kfp_flywheel.components.runtime.config import Pods
from kfp_flywheel.components.runtime.ports import Served

from tests.releases import release


def test_a_model_server_is_told_what_to_serve_and_how_much_to_log() -> None:
    made = service(
        *("team", "detector", "v1", Served(release=release("1"), weight=100), "s3://bucket", "flywheel-x", Pods()),
        log_share=0.25,
    )
    given = {variable["name"]: variable["value"] for variable in made["spec"]["predictor"]["model"]["env"]}
    assert given == {
        "FLYWHEEL_PACKAGE": "s3://bucket/artifacts/p.json",
        "FLYWHEEL_STORE": "s3://bucket",
        "FLYWHEEL_NAME": "detector",
        "FLYWHEEL_VERSION": "v1",
        "FLYWHEEL_LOG_SHARE": "0.25",
        "FLYWHEEL_HOST": "0.0.0.0",
    }
