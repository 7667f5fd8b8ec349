"""What a person types, and what a person reads when it was wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp.components import load_component_from_file
from kfp_flywheel.components.runtime import config
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.pipelines import running

COMMANDS = ["run", "submit", "compile", "serve", "predict", "traffic", "status", "history", "watch"]
COMMANDS += ["rollout", "promote", "rollback", "monitor", "batch", "doctor", "init", "uninstall", "demo"]
GROUPS = ["runs", "schedule"]
PARTS = [f"runs {name}" for name in ("list", "show", "cancel", "logs")]
PARTS += [f"schedule {name}" for name in ("create", "list", "pause", "resume", "delete")]
WRONG: dict[str, object] = {
    "max_bad_fraction": 1.5,
    "max_megapixels": 0,
    "val_fraction": 0.5,
    "test_fraction": "half",
    "group_pattern": "(unclosed",
    "grow_from": "yesterday",
    "architecture": "",
    "image_size": 100,
    "epochs": 0,
    "batch": 0.5,
    "learning_rate": -0.1,
    "class_gain": 0,
    "mosaic": 2,
    "flip": -1,
    "scale": "nan",
    "workers": 0,
    "cpus_per_worker": -2,
    "gpus_per_worker": 99,
    "seed": -1,
    "start_from": "yesterday",
    "min_map50": "inf",
    "min_class_map50": 7,
    "margin": -0.02,
    "min_images": 0,
    "old_margin": 2,
    "max_latency_ms": 0,
    "max_size_mb": -1,
    "model": "Not A Name",
    "endpoint": "-detector",
    "ready_timeout_s": 0,
    "canary_steps": "ten",
    "step_requests": 0,
    "max_requests": -1,
    "max_seconds": 0,
    "look_s": "often",
    "error_margin": 1.5,
    "slow_margin": 0,
    "replays": -1,
}


def flywheel(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kfp_flywheel.pipelines.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [*COMMANDS, *PARTS])
def test_help_has_examples(command: str, tmp_path: Path) -> None:
    done = flywheel(*command.split(), "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Examples:\n    flywheel " + command in done.stdout


def test_every_command_is_tested_here(tmp_path: Path) -> None:
    listed = flywheel("--help", folder=tmp_path).stdout.split("Commands:")[1]
    assert re.findall(r"^  (\w+) ", listed, flags=re.MULTILINE) == [*COMMANDS, *GROUPS]
    for group in GROUPS:
        listed = flywheel(group, "--help", folder=tmp_path).stdout.split("Commands:")[1]
        assert [f"{group} {name}" for name in re.findall(r"^  (\w+) ", listed, flags=re.MULTILINE)] == [
            part for part in PARTS if part.startswith(group)
        ]


def test_help_of_run_lists_every_parameter(tmp_path: Path) -> None:
    done = flywheel("run", "--help", folder=tmp_path)
    for name in config.names_of(config.FLYWHEEL):
        assert f"\n  {name} " in done.stdout


def test_every_field_is_covered_by_a_wrong_value() -> None:
    assert set(WRONG) == set(config.names_of(config.FLYWHEEL)) - {"source"}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_before_anything_starts(name: str) -> None:
    with pytest.raises(UserError) as raised:
        running.read_parameters("data.yaml", None, [f"{name}={WRONG[name]}"])
    assert name in raised.value.message
    assert str(WRONG[name]) in raised.value.message
    assert raised.value.next


def test_a_misspelt_parameter_gets_a_suggestion(tmp_path: Path) -> None:
    done = flywheel("run", "--data", "x", "-p", "epoch=3", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: epoch is not a parameter.\nnext:  did you mean epochs?\n"
    assert not (tmp_path / ".flywheel").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("epochs: [", "is not YAML"),
        ("- epochs", "is not a mapping"),
        (None, "cannot be read"),
        ("epochs: many", "'many'"),
    ],
)
def test_a_broken_config_file_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
    done = flywheel("run", "--data", "x", "--config", "c.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_batch_without_images_says_how(tmp_path: Path) -> None:
    done = flywheel("batch", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no images were named.\nnext:  flywheel batch --images path/to/images\n"


def test_an_unreadable_source_ends_the_run_before_training(tmp_path: Path) -> None:
    done = flywheel("run", "--data", "nowhere/data.yaml", "--port", "0", "--json", folder=tmp_path)
    assert done.returncode == 2
    ended = json.loads(done.stdout)
    assert [step["step"] for step in ended["steps"]] == ["resolve", "ingest", "notify"]
    assert "nowhere/data.yaml" in ended["reason"]
    assert "Traceback" not in done.stderr


def test_asking_an_empty_endpoint_tells_what_to_do(tmp_path: Path) -> None:
    assert json.loads(flywheel("status", "--json", folder=tmp_path).stdout)["stable"] is None
    picture = tmp_path / "x.jpg"
    picture.write_bytes(b"not a picture")
    done = flywheel("predict", "x.jpg", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_compile_writes_every_pipeline_and_component_with_the_platform_in_it(tmp_path: Path) -> None:
    platform = config.Platform.local(tmp_path / "there").plain()
    image = "registry.example/steps@sha256:" + "0" * 64
    (tmp_path / "images.yaml").write_text(f"steps: {image}\n")  # as `make images` writes it
    platform |= {"images": "images.yaml", "pods": {"env": {"A": "1"}, "secrets": {"store": ["KEY"]}}}
    (tmp_path / "platform.yaml").write_text(yaml.safe_dump(platform))
    done = flywheel("compile", "--platform", "platform.yaml", "--out", "out", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    paths = json.loads(done.stdout)
    assert "out/flywheel.yaml" in paths
    paths.remove("out/components/index.html")
    assert len(paths) == 4 + 12
    for path in paths:
        spec, kubernetes = yaml.safe_load_all((tmp_path / path).read_text())
        given = spec["root"]["inputDefinitions"]["parameters"]["platform"]["defaultValue"]
        assert config.Platform.parse(given).store == platform["store"]
        executors = spec["deploymentSpec"]["executors"]
        assert {executor["container"]["image"] for executor in executors.values()} == {image}
        for container in (executor["container"] for executor in executors.values()):
            alone = path.startswith("out/components/")
            assert (
                container["command"][:2] == ["env", "A=1"]
                if alone
                else container["env"] == [{"name": "A", "value": "1"}]
            )
        on_kubernetes = kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert on_kubernetes.keys() == executors.keys()
        assert all(found["secretAsEnv"][0]["secretName"] == "store" for found in on_kubernetes.values())
        assert load_component_from_file(str(tmp_path / path)).platform_spec.platforms


def test_a_compiled_component_runs_in_somebody_elses_pipeline(tmp_path: Path, digits: Path) -> None:
    flywheel("compile", "--out", "out", folder=tmp_path)
    (tmp_path / "theirs.py").write_text(
        "import sys\n"
        "from kfp import components, dsl, local\n"
        "ingest = components.load_component_from_file('out/components/ingest.yaml')\n"
        "@dsl.pipeline(name='theirs')\n"
        "def theirs(source: str):\n"
        "    ingest(source=source, run_id='theirs-1')\n"
        "local.init(local.SubprocessRunner(use_venv=False))\n"
        "theirs(source=sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "theirs.py", str(digits)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ingest: done" in done.stdout


def test_doctor_says_what_is_wrong_and_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder is wanted")
    done = flywheel("doctor", "--root", "full", "--json", folder=tmp_path)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert not checks["store"]["ok"]
    assert checks["store"]["next"]
    assert checks["train"]["ok"]


def test_doctor_is_content_with_this_machine(tmp_path: Path) -> None:
    done = flywheel("doctor", "--port", "0", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout
