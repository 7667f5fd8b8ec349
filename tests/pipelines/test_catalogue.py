"""What Kubeflow Pipelines is given: valid by its own schema, with the settings of the platform file in it."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from kfp import compiler, dsl
from kfp.components import load_component_from_file
from kfp.dsl.base_component import BaseComponent
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.pipelines import catalogue

EVERYTHING = catalogue.pipelines() | {f"{name} alone": found for name, found in catalogue.components().items()}
STEPS = {
    "all": {"memory": "1Gi", "labels": {"access-ml-pipeline": "true"}, "timeout_s": 600},
    "train": {"timeout_s": 86_400, "cpu": "500m", "volumes": {"pets": "/data"}, "node_selector": {"pool": "cpu"}},
    "notify": {"tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]},
}
PODS = {
    "secrets": {"store": ["KEY", "SECRET"]},
    "pull_secrets": ["registry"],
    "image_pull_policy": "Always",
    "env": {"AWS_DEFAULT_REGION": "eu-central-1"},
}


@pytest.fixture
def there(platform: Platform) -> Platform:
    return Platform.of(**platform.plain() | {"pods": PODS, "steps": STEPS})


def documents(component: BaseComponent, platform: Platform) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(catalogue.compiled(component, platform)))


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_is_compiled_is_valid_by_the_schemas_of_the_sdk(name: str, there: Platform) -> None:
    spec, kubernetes = documents(EVERYTHING[name], there)
    assert ParseDict(spec, PipelineSpec()).root.ByteSize() > 0
    for found in kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        ParseDict(found, KubernetesExecutorConfig())


def test_settings_of_the_platform_file_are_those_of_the_stage_and_for_the_rest_those_of_all(there: Platform) -> None:
    spec, kubernetes = documents(catalogue.pipelines()["flywheel"], there)
    pods = kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = {name: found["container"] for name, found in spec["deploymentSpec"]["executors"].items()}
    assert {found["podMetadata"]["labels"]["access-ml-pipeline"] for found in pods.values()} == {"true"}
    assert {name: found["activeDeadlineSeconds"] for name, found in pods.items()} == dict.fromkeys(pods, 600) | {
        "exec-train": 86_400
    }
    assert pods["exec-train"]["pvcMount"][0] | {"pvcNameParameter": 0} == {
        "constant": "pets", "mountPath": "/data", "pvcNameParameter": 0
    }  # fmt: skip
    assert pods["exec-train"]["nodeSelector"] == {"labels": {"pool": "cpu"}}
    assert "nodeSelector" not in pods["exec-ingest"]
    assert pods["exec-notify"]["tolerations"] == STEPS["notify"]["tolerations"]
    for found in pods.values():
        assert found["secretAsEnv"][0]["secretName"] == "store"
        assert [each["envVar"] for each in found["secretAsEnv"][0]["keyToEnv"]] == ["KEY", "SECRET"]
        assert found["imagePullSecret"][0]["secretName"] == "registry"
        assert found["imagePullPolicy"] == "Always"
    assert {found["resources"]["resourceMemoryLimit"] for found in containers.values()} == {"1Gi"}
    assert containers["exec-train"]["resources"]["resourceCpuRequest"] == "500m"
    assert "resourceCpuLimit" not in containers["exec-ingest"]["resources"]


@pytest.mark.parametrize("name", ["ingest", "monitor", "recall", "resolve"])  # which need no other one before them
def test_a_component_of_a_file_is_compiled_into_somebody_elses_pipeline_with_its_environment(
    name: str, there: Platform, tmp_path: Path
) -> None:
    catalogue.compile_components(there, tmp_path)
    loaded = load_component_from_file(str(tmp_path / f"{name}.yaml"))
    required = {key: "x" for key, given in loaded.component_spec.inputs.items() if not given.optional}

    @dsl.pipeline(name="theirs")
    def theirs() -> None:
        loaded(**required)

    compiler.Compiler().compile(theirs, str(tmp_path / "theirs.yaml"))
    spec = yaml.safe_load((tmp_path / "theirs.yaml").read_text())
    (container,) = [found["container"] for found in spec["deploymentSpec"]["executors"].values()]
    assert container["command"][:2] == ["env", "AWS_DEFAULT_REGION=eu-central-1"]
    # The SDK drops its secrets: the page says how to give them.
    page = (tmp_path / "index.html").read_text()
    assert "use_secret_as_env(task, 'store', {'KEY': 'KEY', 'SECRET': 'SECRET'})" in html.unescape(page)


def test_without_settings_nothing_is_said_of_pods(platform: Platform) -> None:
    (spec,) = documents(catalogue.pipelines()["monitor"], platform)
    assert all("resources" not in found["container"] for found in spec["deploymentSpec"]["executors"].values())


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ({"trian": {"memory": "1Gi"}}, "steps has trian, which is no stage. Next: did you mean train?"),
        ({"train": {"memory": "1 GB"}}, r"Expected .* Next: correct steps.*\.memory"),
        ({"train": {"tolerations": [{"kye": "spot"}]}}, "steps.train: .*kye"),
    ],
)
def test_settings_that_mean_nothing_are_refused(steps: dict[str, Any], why: str, platform: Platform) -> None:
    with pytest.raises(UserError, match=why):
        catalogue.compiled(catalogue.components()["train"], Platform.of(**platform.plain() | {"steps": steps}))


def test_a_step_can_have_a_pipeline_compiled_though_kfp_hides_its_compiler_there(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kfp_flywheel.components.runtime.compiling import compiled

    monkeypatch.setenv("_KFP_RUNTIME", "true")
    assert compiled("monitor", platform) == catalogue.compiled(catalogue.pipelines()["monitor"], platform)


def test_the_page_tells_of_every_component_with_every_input_and_its_image(tmp_path: Path, platform: Platform) -> None:
    image = "registry.example/steps@sha256:" + "0" * 64
    catalogue.compile_components(platform.but(images={"steps": image}), tmp_path)
    page = (tmp_path / "index.html").read_text()
    for name, component in catalogue.components().items():
        (section,) = re.findall(rf'<h2 id="{name}">.*?</table>', page, flags=re.DOTALL)
        assert image in section
        assert f"components/{name}/" in section
        assert (tmp_path / f"{name}.yaml").exists()
        for given in component.component_spec.inputs or {}:
            assert f"<code>{given}</code>" in section
        for made in component.component_spec.outputs or {}:
            assert f"<code>{made}</code>" in section
    assert "<script" not in page
