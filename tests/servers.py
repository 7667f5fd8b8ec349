"""Servers on this machine: object stores that speak what the clouds' do (moto's S3, fake-gcs-server), and MLflow."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster import programs
from tests.cluster.places import Places
from tests.cluster.processes import answers
from tests.waiting import wait_for

BUCKET = "flywheel-tests"


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class S3:
    """moto's server, with a bucket; what it holds stays while it is away."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.url = f"http://{host}:{port}"

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.server = ThreadedMotoServer(self.host, self.port, verbose=False)
        self.server.start()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.server.stop()
        try:
            yield
        finally:
            self.start()


@contextmanager
def s3(host: str = "127.0.0.1") -> Iterator[S3]:
    """An S3 server with a bucket, to which boto3 is directed meanwhile."""
    import boto3

    server = S3(host, free_port(host))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        try:
            yield server
        finally:
            server.server.stop()


def gcs_program() -> Path:
    """fake-gcs-server; `make cluster` builds it."""
    return programs.path(Places.usual(), "fake-gcs-server")


@contextmanager
def gcs(folder: Path) -> Iterator[str]:
    """A server that speaks Google Cloud Storage, with a bucket, to which its library is directed meanwhile."""
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [gcs_program(), "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-public-host=127.0.0.1:{port}"]
    command += [f"-external-url={url}", f"-filesystem-root={folder}", "-log-level=error"]
    with subprocess.Popen(command, env=os.environ) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "tests")
        try:
            wait_for(lambda: answers(f"{url}/storage/v1/b?project=tests"), 60, "fake-gcs-server")
            yield url
        finally:
            server.kill()


@contextmanager
def mlflow(
    folder: Path, host: str = "127.0.0.1", given: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """An MLflow server; gives its URL.

    Args:
        given: Options in place of those for SQLite.
    """
    port = free_port(host)
    own = ["--workers=1", f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--allowed-hosts={host}:{port}"]
    command = [sys.executable, "-m", "mlflow", "server", *(given or own), f"--host={host}", f"--port={port}"]
    env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"} | dict(env or {})
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: answers(f"http://{host}:{port}/health"), 120, "MLflow")
        yield f"http://{host}:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of Debian's with an empty database, `mlflow`; gives its HOST:PORT. The password is tests."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    who = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}  # it refuses to be root
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="flywheel-postgresql-") as name:
        data, password = Path(name) / "data", Path(name) / "password"
        password.write_text("tests")
        if who:
            for path in (data.parent, password):
                shutil.chown(path, **who)

        def run(program: str, *options: str) -> None:
            environment = os.environ | {"PGPASSWORD": "tests"}
            command = [programs / program, "--username=mlflow", *options]
            subprocess.run(command, check=True, cwd=name, capture_output=True, env=environment, **who)

        run(
            "initdb", f"--pgdata={data}", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"
        )
        options = [f"--port={port}", "--listen_addresses=127.0.0.1", f"--unix_socket_directories={name}", "--fsync=off"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], cwd=name, **quiet, **who)
        at = ("--host=127.0.0.1", f"--port={port}")
        try:
            ready = [programs / "pg_isready", *at]
            wait_for(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 30, "PostgreSQL")
            run("createdb", *at, "mlflow")
            yield f"127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()
