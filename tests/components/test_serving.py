"""Serving on one machine: what the model server answers, where the gateway sends requests, what survives a kill."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from kfp_flywheel.components.recipes.detection.log import pictures_of, read_window
from kfp_flywheel.components.recipes.detection.predict import Predictor, decode
from kfp_flywheel.components.recipes.detection.window import Window
from kfp_flywheel.components.runtime.adapters.local.serving import LocalServing
from kfp_flywheel.components.runtime.artifacts import ModelPackage, Release
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import FlywheelError, PlatformError, UserError
from kfp_flywheel.components.runtime.packages import fetch_package
from kfp_flywheel.components.runtime.ports import EndpointState, Served
from kfp_flywheel.components.runtime.wiring import World, connect
from kfp_flywheel.components.serving.client import infer
from kfp_flywheel.components.serving.serve import serving

from tests.tiny import tiny_images, tiny_release

IMAGE = tiny_images()[0]


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Poll until something holds; errors of serving count as not yet."""
    deadline = time.monotonic() + seconds
    problem: object = "it does not hold"
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (FlywheelError, OSError, KeyError, IndexError) as error:
            problem = error
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {problem}")


def want(world: World, *releases: tuple[Release, int], endpoint: str = "detector") -> EndpointState:
    """Write a wanted state; the first release is the stable one."""
    versions = {f"v{release.version}": Served(release=release, weight=weight) for release, weight in releases}
    state = world.serving.read(endpoint)
    return world.serving.write(state.but(versions=versions, stable=next(iter(versions), None)))


def pids(world: World, endpoint: str = "detector") -> dict[str, int]:
    assert isinstance(world.serving, LocalServing)
    path = world.serving.folder / endpoint / "seen.json"
    return dict(json.loads(path.read_text())["pids"]) if path.exists() else {}


def answers(url: str, version: str) -> Callable[[], bool]:
    return lambda: infer(url, "detector", IMAGE).version == version


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    """An endpoint `detector` that answers with v1, and its gateway's address."""
    platform = Platform.local(tmp_path_factory.mktemp("platform"))
    world = connect(platform)
    with serving(platform) as url:
        want(world, (tiny_release(world.store), 100))
        until(answers(url, "v1"))
        yield world, url
    assert not [p for p in psutil.process_iter(["cmdline"]) if world.store.root in " ".join(p.info["cmdline"] or [])]


def ask(url: str, body: object, name: str = "detector") -> httpx.Response:
    return httpx.post(f"{url}/v2/models/{name}/infer", json=body, trust_env=False)


def body(**changes: object) -> dict[str, object]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGE).decode()]}
    return {"inputs": [tensor | changes]}


def test_the_endpoint_sees_what_the_package_sees(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    uri = world.serving.read("detector").versions["v1"].release.package_uri
    fetch_package(world.store, ModelPackage.from_json(world.store.get(uri), uri), tmp_path)
    for image in tiny_images():
        expected, answer = Predictor(tmp_path).predict(decode(image)), infer(url, "detector", image, embedding=True)
        assert answer.version == "v1"
        assert len(answer.boxes) == len(expected) > 0
        np.testing.assert_allclose(answer.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_array_equal(answer.classes, expected.classes)
        np.testing.assert_allclose(answer.embedding, expected.embedding, rtol=1e-5)


def test_base64_in_json_gives_the_same_as_binary_tensors(served: tuple[World, str]) -> None:
    answer = ask(served[1], body())
    assert answer.headers["x-flywheel-version"] == "v1"
    document = answer.json()
    assert document["model_version"] == "v1"
    outputs = {output["name"]: output for output in document["outputs"]}
    assert list(outputs) == ["boxes", "scores", "classes"]  # the embedding only when asked for
    binary = infer(served[1], "detector", IMAGE)
    np.testing.assert_allclose(np.reshape(outputs["boxes"]["data"], (-1, 4)), binary.boxes)
    assert outputs["classes"]["datatype"] == "INT64"


def test_a_request_may_have_its_own_score_limit(served: tuple[World, str]) -> None:
    assert len(infer(served[1], "detector", IMAGE, conf=0.0).scores) > len(
        infer(served[1], "detector", IMAGE, 0.9).scores
    )
    nothing = infer(served[1], "detector", IMAGE, conf=1.0)
    assert nothing.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("request_body", "sentence"),
    [
        (body(data=[base64.b64encode(b"no image").decode()]), "8 bytes are not an image"),
        (body(data=["%%%"]), "not base64"),
        (body(data=[]), "needs one element"),
        (body(data=[1]), "needs one element"),
        (body(datatype="FP32", data=[1.0]), "datatype FP32"),
        (body(shape=[2]), r"shape \[2\]"),
        (body(name="picture"), "named image"),
        ({"inputs": []}, "exactly one input"),
        ({"inputs": "x"}, "not an Open Inference Protocol request"),
        (body() | {"outputs": [{"name": "masks"}]}, "output masks is not one of"),
        (body() | {"parameters": {"conf": 2}}, "conf is '2'"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(
    served: tuple[World, str], request_body: object, sentence: str
) -> None:
    answer = ask(served[1], request_body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert len(answer.text) < 300  # and never with the image in it
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(answer.json()["error"])


@pytest.mark.parametrize(
    ("length", "content"),
    [("", b"abc"), ("9", b"abc"), ("2", b"{}"), ("2", b"xx"), ("-1", b"{}"), ("4", b"null"), ("13", b'{"inputs":[]}')],
)
def test_a_broken_binary_request_is_refused(served: tuple[World, str], length: str, content: bytes) -> None:
    headers = {"content-type": "application/octet-stream"} | (
        {"inference-header-content-length": length} if length else {}
    )
    answer = httpx.post(f"{served[1]}/v2/models/detector/infer", content=content, headers=headers, trust_env=False)
    assert answer.status_code == 400


def test_unknown_names_and_what_is_too_large_are_refused(served: tuple[World, str]) -> None:
    world, url = served
    direct = world.serving.observe("detector")["v1"].url
    assert ask(url, body(), "other").status_code == 404
    assert ask(direct, body(), "other").status_code == 404
    large = b"x" * (33 << 20)
    for address in (url, direct):
        assert httpx.post(f"{address}/v2/models/detector/infer", content=large, trust_env=False).status_code == 413
    unload = httpx.post(f"{direct}/v2/repository/models/detector/unload", trust_env=False)
    assert unload.status_code == 404
    assert infer(direct, "detector", IMAGE).version == "v1"


def test_answers_are_counted_by_version_and_code(served: tuple[World, str]) -> None:
    world, url = served
    ask(url, body())
    ask(url, body(data=["%%%"]))
    who = 'model_name="detector",version="v1"'
    own = httpx.get(world.serving.observe("detector")["v1"].url + "/metrics", trust_env=False).text
    gateway = httpx.get(f"{url}/metrics", trust_env=False).text
    for code in ("200", "400"):
        assert f'flywheel_requests_total{{code="{code}",{who}}}' in own
        assert f'flywheel_gateway_requests_total{{code="{code}",endpoint="detector",version="v1"}}' in gateway
    good = own.split(f'flywheel_requests_total{{code="200",{who}}} ')[1].split()[0]
    assert f"flywheel_request_seconds_count{{{who}}} {good}" in own, "a refusal has no speed"
    assert f"flywheel_failures_total{{{who}}} 0.0" in own


def test_telemetry_counts_what_was_answered_and_leaves_clients_mistakes_out(served: tuple[World, str]) -> None:
    world, url = served
    ask(url, body())
    before = world.telemetry.counts("detector")["v1"]
    for _ in range(3):
        ask(url, body())
    ask(url, body(data=["%%%"]))
    after = world.telemetry.counts("detector")["v1"]
    assert (after.requests - before.requests, after.failures - before.failures) == (3, 0)
    assert after.within["+Inf"] - before.within["+Inf"] == 3


def test_the_prediction_log_keeps_what_users_asked_and_nothing_else(served: tuple[World, str]) -> None:
    world, url = served
    since = time.time()
    kept, *asked_again = tiny_images(6)
    answer = infer(url, "detector", kept)
    infer(url, "detector", asked_again[0], shadow=True)
    infer(url, "detector", asked_again[1], conf=0.9)
    ask(url, body(data=[base64.b64encode(asked_again[2]).decode()]) | {"parameters": {"shadow": True}})
    ask(url, body(data=[base64.b64encode(b"no image").decode()]))
    infer(url, "detector", asked_again[3], conf=0.25)  # the package's own limit
    ask(url, body(data=[base64.b64encode(asked_again[4]).decode()]))

    def logged() -> Window:
        return read_window(world.store, "detector", "v1", 100, since)[0]

    until(lambda: logged().requests >= 3, 20)
    window = logged()
    assert list(pictures_of(world.store, window.pictures)) == [kept, asked_again[3], asked_again[4]]
    np.testing.assert_allclose(window.part(0, 1).scores, answer.scores)
    assert window.at[0] >= since


def test_readiness_is_told_in_three_places(served: tuple[World, str]) -> None:
    world, url = served
    direct = world.serving.observe("detector")["v1"].url
    assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"ready": {"detector": ["v1"]}}
    for address in (
        f"{direct}/v2/health/ready",
        f"{direct}/v2/models/detector/ready",
        f"{url}/v2/models/detector/ready",
    ):
        assert httpx.get(address, trust_env=False).json()["ready"] is True


def test_the_client_says_who_is_to_blame(served: tuple[World, str]) -> None:
    with pytest.raises(UserError, match="8 bytes are not an image"):
        infer(served[1], "detector", b"no image")
    with pytest.raises(UserError, match="no endpoint 'other' here; known: detector"):
        infer(served[1], "other", IMAGE)
    with pytest.raises(PlatformError, match="does not answer"):
        infer("http://127.0.0.1:9", "detector", IMAGE)


def test_kserves_own_client_is_understood_and_nothing_of_training_is_loaded(served: tuple[World, str]) -> None:
    """One child for both: importing KServe takes seconds."""
    world, url = served
    uri = world.serving.read("detector").versions["v1"].release.package_uri
    program = f"""
import base64, json, sys
image = base64.b64decode(sys.argv[1])
from kfp_flywheel.components.runtime.wiring import open_store
from kfp_flywheel.components.serving.model_server import import_kserve, load
import_kserve()
load(open_store({world.store.root!r}), {uri!r})
import kfp_flywheel.components.serving.detector
loaded = sorted({{"torch", "ultralytics", "ray", "mlflow", "kfp"}} & set(sys.modules))

import numpy as np
from kserve import InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput
tensor = InferInput("image", [1], "BYTES")
tensor.set_data_from_numpy(np.array([image], dtype=np.object_), binary_data=True)
wanted = [RequestedOutput(name, {{"binary_data": False}}) for name in ("embedding", "scores")]
content, length = InferRequest("detector", [tensor], request_outputs=wanted).to_rest()
print(json.dumps([loaded, base64.b64encode(content).decode(), length]))
"""
    command = [sys.executable, "-c", program, base64.b64encode(IMAGE).decode()]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded, content, length = json.loads(output.splitlines()[-1])
    assert loaded == []
    headers = {"inference-header-content-length": str(length), "content-type": "application/octet-stream"}
    address = f"{url}/v2/models/detector/infer"
    document = httpx.post(address, content=base64.b64decode(content), headers=headers, trust_env=False).json()
    assert [output["name"] for output in document["outputs"]] == ["embedding", "scores"]
    np.testing.assert_allclose(document["outputs"][1]["data"], infer(url, "detector", IMAGE).scores)


def test_a_second_serve_and_a_taken_port_end_at_once_with_a_reason(served: tuple[World, str], tmp_path: Path) -> None:
    world, url = served
    command = [sys.executable, "-m", "kfp_flywheel.components.serving.serve", "--platform"]
    again = subprocess.run([*command, world.platform.line()], capture_output=True, text=True, timeout=60)
    assert isinstance(world.serving, LocalServing)
    pid = (world.serving.server() or {})["pid"]
    assert again.returncode == 3
    assert f"process {pid}, {url}" in again.stdout.splitlines()[-1]
    port = url.rpartition(":")[2]
    other = Platform.local(tmp_path).line()
    taken = subprocess.run([*command, other, "--port", port], capture_output=True, text=True, timeout=60)
    assert taken.returncode == 2
    assert f"port {port} of 127.0.0.1 is in use. Next: flywheel serve --port" in taken.stdout.splitlines()[-1]


def test_a_killed_model_server_comes_back(served: tuple[World, str]) -> None:
    world, url = served
    until(answers(url, "v1"))
    first = pids(world)["v1"]
    os.kill(first, signal.SIGKILL)
    until(lambda: pids(world).get("v1", first) != first and infer(url, "detector", IMAGE).version == "v1")
    assert not psutil.pid_exists(first)


def test_a_stable_version_is_replaced_without_one_failed_request(served: tuple[World, str]) -> None:
    world, url = served
    until(answers(url, "v1"))
    old = pids(world)["v1"]
    want(world, (tiny_release(world.store, "2", bias=2.0), 100))
    seen = set()
    deadline = time.monotonic() + 60
    while "v2" not in seen and time.monotonic() < deadline:
        seen.add(infer(url, "detector", IMAGE).version)  # raises if one fails
        time.sleep(0.02)  # leaves the new version some of the machine to start on
    assert seen == {"v1", "v2"}
    until(lambda: not psutil.pid_exists(old))
    assert list(world.serving.observe("detector")) == ["v2"]


def test_a_tampered_package_never_serves_and_says_why(served: tuple[World, str]) -> None:
    world, url = served
    release = tiny_release(world.store, "3", bias=3.0)
    package = ModelPackage.from_json(world.store.get(release.package_uri), "package")
    model = Path(package.files["model.onnx"].uri.removeprefix("file://"))
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    want(world, (release, 100), endpoint="tampered")
    until(lambda: "does not hash to" in world.serving.observe("tampered")["v3"].reason)
    assert not world.serving.observe("tampered")["v3"].ready
    answer = ask(url, body(), "tampered")
    assert answer.status_code == 503
    assert "does not hash to" in answer.json()["error"]
    want(world, endpoint="tampered")
    until(lambda: not world.serving.observe("tampered"))


def test_a_package_that_does_not_do_what_its_trainer_saw_never_serves(served: tuple[World, str]) -> None:
    world, _ = served
    good, other = (
        ModelPackage.from_json(world.store.get(r.package_uri), "package")
        for r in (tiny_release(world.store), tiny_release(world.store, "2", bias=2.0))
    )
    swapped = good.but(**{"id": "swapped", "files": good.files | {"model.onnx": other.files["model.onnx"]}})
    uri = world.store.put("artifacts/swapped.json", swapped.line().encode())
    release = tiny_release(world.store, "4").but(id="swapped", package_uri=uri)
    want(world, (release, 100), endpoint="swapped")
    until(lambda: "golden image 1 of 4 is not reproduced" in world.serving.observe("swapped")["v4"].reason)
    want(world, endpoint="swapped")


def test_killed_serve_leaves_nothing_and_serves_the_same_again(world: World) -> None:
    want(world, (tiny_release(world.store), 100))
    assert isinstance(world.serving, LocalServing)
    command = [sys.executable, "-m", "kfp_flywheel.components.serving.serve", "--port", "0", "--platform"]
    with subprocess.Popen([*command, world.platform.line()], stdout=subprocess.DEVNULL) as server:
        until(lambda: world.serving.observe("detector")["v1"].ready)
        url = world.serving.url("detector")
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
        server.kill()
    until(lambda: not any(child.is_running() for child in children), 20)
    assert (world.serving.url("detector"), world.serving.observe("detector")) == ("", {})
    with serving(world.platform, int(url.rpartition(":")[2])) as again:
        assert again == url
        until(answers(again, "v1"))
        with serving(world.platform) as shared:  # one that is at work is used, and left at work
            assert shared == again
        assert infer(again, "detector", IMAGE).version == "v1"
        children = psutil.Process((world.serving.server() or {})["pid"]).children(recursive=True)
    assert children
    assert not any(child.is_running() for child in children)
    assert world.serving.url("detector") == ""
