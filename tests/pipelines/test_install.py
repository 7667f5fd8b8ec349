"""`flywheel init`, and what of an installation can be told without a cluster."""

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from kfp_flywheel.components.runtime.adapters.kserve.reconciler import deployment
from kfp_flywheel.components.runtime.config import Gateway, Platform, Pods
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.images import STEPS, VERSION
from kfp_flywheel.pipelines import init
from kfp_flywheel.pipelines.platforms import read_platform
from kfp_flywheel.pipelines.uninstall import uninstall

from .test_cli import flywheel

MANIFESTS = Path(__file__).parents[2] / "manifests"
FILLED = {
    "<bucket>": "bucket",
    "<region>": "eu-central-1",
    "<address of MLflow>": "http://mlflow.example",
    "<address of the gateway>": "gateway.example",
}


@pytest.mark.parametrize("kind", init.KINDS)
def test_what_init_writes_is_a_platform_once_it_is_filled_in(kind: str, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    images = {name: f"registry.example/{name}@sha256:{'0' * 64}" for name in ("steps", "train", "serve")}
    (tmp_path / "build/images.yaml").write_text(yaml.safe_dump(images))
    file = tmp_path / "cluster.yaml"
    told, text = "\n".join(init.init(kind, file, force=False)["fill_in"]), file.read_text()
    marked = set(re.findall(r"<[^<>]+>", "\n".join(told_lines(text))))
    assert marked == set(re.findall(r"<[^<>]+>", told))
    with pytest.raises(UserError) as refused:
        read_platform(tmp_path, file)
    assert all(word in refused.value.message for word in marked)
    for word in marked:
        text = text.replace(word, FILLED[word])
    file.write_text(text)
    assert deployment(read_platform(tmp_path, file))["metadata"]["namespace"] == init.NAMESPACE


def told_lines(text: str) -> list[str]:
    """Without what is a comment."""
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("kind", init.KINDS)
def test_every_setting_is_there_and_described_and_what_is_commented_out_is_the_default(kind: str) -> None:
    text = init.written(kind, Path("cluster.yaml"))
    for word, value in FILLED.items():
        text = text.replace(word, value)
    for section in (Platform, Gateway, Pods):
        for field in msgspec.structs.fields(section):
            assert re.search(rf"^ *# [A-Za-z][^\n]+\n *(# )?{field.name}:", text, flags=re.MULTILINE), field.name
    all_of_it = yaml.safe_load(re.sub(r"^( *)# ([a-z_]+: |[a-z_]+:$)", r"\1\2", text, flags=re.MULTILINE))
    given = yaml.safe_load(text)
    all_of_it["images"] = given["images"] = {}
    assert Platform.of(**all_of_it) == Platform.of(**given)


def test_init_writes_over_nothing_unless_told_to(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("mine")
    done = flywheel("init", "--platform", "gke", folder=tmp_path)
    assert (done.returncode, (tmp_path / "cluster.yaml").read_text()) == (2, "mine")
    assert "--force" in done.stderr
    done = flywheel("init", "--platform", "gke", "--force", "--json", folder=tmp_path)
    assert json.loads(done.stdout)["fill_in"][0] == "store: gs://<bucket>/flywheel"
    with pytest.raises(UserError, match="kind, gke, eks"):
        init.init("openshift", tmp_path / "cluster.yaml", force=True)


def test_uninstalling_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is on a cluster"):
        uninstall(Platform.local(tmp_path), yes=True, endpoints=True, by="me")


def test_the_manifests_are_of_this_version() -> None:
    release = yaml.safe_load((MANIFESTS / "components/release/kustomization.yaml").read_text())
    assert release["labels"][0]["pairs"]["app.kubernetes.io/version"] == VERSION
    assert f"image: &image {STEPS}\n" in (MANIFESTS / "components/mlflow/mlflow.yaml").read_text()


def test_every_component_and_overlay_is_told_of() -> None:
    told = (MANIFESTS / "README.md").read_text()
    for path in (MANIFESTS / "components").iterdir():
        assert f"| `{path.name}` |" in told
    for path in (MANIFESTS / "overlays").iterdir():
        assert path.name in init.KINDS
