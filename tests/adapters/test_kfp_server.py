"""The way to Kubeflow Pipelines: what a person reads when it is not there, or is not what it was taken for."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime.adapters.kfp import server
from kfp_flywheel.components.runtime.adapters.kfp.pods import Pods, hindrance
from kfp_flywheel.components.runtime.adapters.kfp.server import HOST, Server
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.wiring import connect
from kfp_server_api import ApiException

from tests.cluster.keys import Keys
from tests.servers import free_port


@contextmanager
def answering(status: int, body: bytes, seen: list[str] | None = None, keys: Keys | None = None) -> Iterator[str]:
    """An HTTP server that says the same to everybody; by TLS, with keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        if keys:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(keys.crt("kfp"), keys.key("kfp"))
            http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"kfp+{'https' if keys else 'http'}://127.0.0.1:{http.server_port}"
        http.shutdown()


HEALTHY = json.dumps({"multi_user": False}).encode()


def test_an_address_where_nothing_is_says_how_to_get_there() -> None:
    with pytest.raises(PlatformError, match=r"does not answer: .*refused") as away:
        Server(f"kfp+http://127.0.0.1:{free_port()}")
    assert "port-forward" in away.value.next


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>a dashboard</html>", "answers 200, and not as Kubeflow Pipelines does"),
        (404, b"not here", "answers 404, and not as"),
        (401, b"{}", "refuses us: 401"),
        (403, b"{}", "refuses us: 403"),
    ],
)
def test_something_else_at_its_address_is_told(status: int, body: bytes, why: str) -> None:
    with answering(status, body) as uri, pytest.raises(PlatformError, match=why):
        Server(uri)


def test_with_many_users_a_namespace_is_asked_for() -> None:
    with answering(200, b'{"multi_user": true}') as uri:
        with pytest.raises(UserError, match="serves many users, and runs names no namespace"):
            Server(uri)
        assert Server(f"{uri}?namespace=team").namespace == "team"


def test_a_token_comes_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    with answering(200, HEALTHY, seen) as uri:
        with pytest.raises(UserError, match="KFP_TOKEN is not set"):
            Server(f"{uri}?token=KFP_TOKEN")
        monkeypatch.setenv("KFP_TOKEN", "secret")
        found = Server(f"{uri}?token=KFP_TOKEN")
        monkeypatch.setenv("KFP_TOKEN", "renewed")
        found.text("/apis/v2beta1/healthz")
    assert seen == ["Bearer secret", "Bearer renewed"]


def test_a_pod_of_a_kubeflow_for_many_uses_the_token_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, token = list[str](), tmp_path / "token"
    token.write_text("projected\n")
    monkeypatch.setattr(server, "TOKEN", token)
    with answering(200, HEALTHY, seen) as uri:
        Server(uri)
    assert seen == ["Bearer projected"]


def test_an_authority_of_ones_own_is_trusted_when_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.certificate("kfp", "kfp", hosts=("127.0.0.1",))
    with answering(200, HEALTHY, keys=keys) as uri:
        with pytest.raises(PlatformError, match=r"does not answer: .*certificate verify failed") as refused:
            Server(uri)
        assert "SSL_CERT_FILE" in refused.value.next
        monkeypatch.setenv("SSL_CERT_FILE", str(keys.crt("ca")))
        assert Server(uri).text("/apis/v2beta1/healthz") == HEALTHY.decode()


def test_a_failure_of_the_server_is_no_log() -> None:
    with answering(200, HEALTHY) as uri:
        found = Server(uri)
    with answering(500, b'{"error": "no"}') as uri:
        found.url = uri.removeprefix("kfp+")
        with pytest.raises(ApiException):
            found.text("/apis/v1alpha1/runs/1/nodes/1/log")


def test_where_it_is_for_this_process_overrules_where_it_is_for_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, HEALTHY) as uri:
        monkeypatch.setenv(HOST, uri.removeprefix("kfp+"))
        found = Server("kfp+http://ml-pipeline.kubeflow:8888?ui=https://kubeflow.example/pipeline")
    assert (found.url, found.ui) == (uri.removeprefix("kfp+"), "https://kubeflow.example/pipeline")


@pytest.mark.parametrize(
    ("runs", "namespace"),
    [
        ("kfp+http://ml-pipeline.kubeflow:8888", "kubeflow"),
        ("kfp+http://ml-pipeline.team.svc.cluster.local:8888", "team"),
        ("kfp+https://kubeflow.example/pipeline?namespace=mine", "mine"),
        ("kfp+http://127.0.0.1:8888", "kubeflow"),
        ("local:///queue", ""),
        ("", ""),
    ],
)
def test_the_namespace_of_the_steps_is_known_by_the_address(runs: str, namespace: str, platform: Platform) -> None:
    assert platform.but(runs=runs).steps_namespace == namespace


def waits(reason: str, message: str = "") -> dict[str, object]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "status": {"initContainerStatuses": [{"state": {"terminated": {}}}], "containerStatuses": [{"state": state}]}
    }


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        (
            waits("CreateContainerConfigError", 'secret "a" not found'),
            'CreateContainerConfigError: secret "a" not found',
        ),
        (waits("ImagePullBackOff"), "ImagePullBackOff"),
        (waits("ContainerCreating"), ""),
        (
            {"status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no CPU"}]}},
            "a node: no CPU",
        ),
        ({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}, ""),
        ({}, ""),
    ],
)
def test_a_pod_tells_what_keeps_it_from_beginning(pod: dict[str, object], told: str) -> None:
    assert hindrance(pod) == told


def test_who_may_not_see_pods_is_told_how_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    pods = Pods("kubeflow")
    assert pods.printed("a-pod") is None
    assert pods.wait_for("a-pod") == "its pod: kubectl -n kubeflow describe pod a-pod"


def test_an_option_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="runs has nmaespace, which is not known"):
        Server("kfp+http://127.0.0.1:1?nmaespace=team")


def test_schedules_of_one_machine_are_flywheel_watch(platform: Platform) -> None:
    with pytest.raises(UserError, match="flywheel watch is the schedule of one machine"):
        _ = connect(platform).schedules
