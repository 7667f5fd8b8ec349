"""MLflow as manifests/components/mlflow runs it: on a real PostgreSQL and a bucket, with two clients at once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from kfp_flywheel.components.register.stage import register
from kfp_flywheel.components.runtime.adapters.local.store import LocalStore
from kfp_flywheel.components.runtime.adapters.mlflow import open_mlflow

from tests import servers
from tests.components.test_register import FORK, package, report

MANIFEST = Path(__file__).parents[2] / "manifests/components/mlflow/mlflow.yaml"
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/usr/lib/postgresql").exists(), reason="no PostgreSQL: apt-get install postgresql"),
]


class Server:
    """It, by its containers' own commands with the addresses of this machine."""

    def __init__(self, database: str, store: str, folder: Path) -> None:
        (made,) = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "Deployment"]
        spec = made["spec"]["template"]["spec"]
        (schema,), (server,) = spec["initContainers"], spec["containers"]
        given = {one["name"]: one.get("value", "tests") for one in server["env"]}
        uri = given["MLFLOW_BACKEND_STORE_URI"].replace("$(POSTGRES_PASSWORD)", "tests")
        uri = uri.replace("mlflow-postgresql:5432", database)
        self.env = given | {"MLFLOW_BACKEND_STORE_URI": uri, "AWS_ENDPOINT_URL": store}
        self.schema = [word.replace("$(MLFLOW_BACKEND_STORE_URI)", uri) for word in schema["command"]]
        hosts = next(word for word in server["command"] if word.startswith("--allowed-hosts"))
        self.options = [*server["command"][2:], f"{hosts},127.0.0.1:*"]
        self.folder, self.url = folder, ""

    def begin(self) -> None:
        """What is done at each start of a pod."""
        command = [sys.executable, "-m", *self.schema]
        subprocess.run(command, check=True, cwd=self.folder, env=os.environ | self.env, capture_output=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    with servers.postgresql() as database, servers.s3() as s3:
        boto3.client("s3").create_bucket(Bucket="flywheel")
        server = Server(database, s3.url, folder)
        server.begin()
        with servers.mlflow(folder, "127.0.0.1", server.options, server.env) as server.url:
            yield server


def client_of(url: str, folder: Path, number: int, both: Barrier) -> None:
    """What training and registering do, at the same time as another one."""
    store, client = LocalStore(f"file://{folder}"), open_mlflow(url)
    both.wait()
    experiment = client.create_experiment(f"mine-{number}")
    for one in range(4):
        run = client.create_run(experiment).info.run_id
        client.log_metric(run, "map50", 0.5 + one / 10)
        client.log_text(run, f"{number}/{one}", "said.txt")
        client.set_terminated(run)
        judged = package(store, f"p{one}")
        register(client, "detector", judged, report(store, judged.id), f"s3://bucket/{judged.id}.json")


def test_two_clients_at_once(server: Server, tmp_path: Path) -> None:
    both = FORK.Barrier(2)
    clients: list[Any] = [
        FORK.Process(target=client_of, args=(server.url, tmp_path, number, both)) for number in range(2)
    ]
    (tmp_path / "artifacts").mkdir()
    for one in clients:
        one.start()
    for one in clients:
        one.join(120)
    assert [one.exitcode for one in clients] == [0, 0]
    client = open_mlflow(server.url)
    versions = client.search_model_versions("name = 'detector'")
    assert sorted(one.tags["flywheel.package"] for one in versions) == ["p0", "p1", "p2", "p3"], "each once"
    keys = [one["Key"] for one in boto3.client("s3").list_objects_v2(Bucket="flywheel")["Contents"]]
    assert len([key for key in keys if key.endswith("/artifacts/said.txt")]) == 8, "in the bucket, not in the pod"
    for number in range(2):
        experiment = client.get_experiment_by_name(f"mine-{number}")
        runs = client.search_runs([experiment.experiment_id], order_by=["metrics.map50"])
        assert [one.data.metrics["map50"] for one in runs] == [0.5, 0.6, 0.7, 0.8]


def test_another_start_takes_the_schema_as_it_is(server: Server) -> None:
    client = open_mlflow(server.url)
    made = client.create_experiment("before")
    server.begin()
    assert client.get_experiment(made).name == "before"
