"""A wrong parameter ends a run before anything is started; the champion is looked up each time."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.resolve.stage import configuration, parse, run
from kfp_flywheel.components.runtime import config
from kfp_flywheel.components.runtime.artifacts import Lineage, Release, Resolution
from kfp_flywheel.components.runtime.errors import UserError
from kfp_flywheel.components.runtime.ports import Served
from kfp_flywheel.components.runtime.step import run_records
from kfp_flywheel.components.runtime.wiring import World

names = st.text(st.characters(exclude_characters="=\n", exclude_categories=["Z", "C"]), min_size=1)
values = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))


@given(st.dictionaries(names, values))
def test_every_value_comes_back_as_it_was(parameters: dict[str, str]) -> None:
    assert parse("\n".join(f"{name}={value}" for name, value in parameters.items())) == parameters


@given(st.text())
def test_any_text_is_parsed_or_refused_with_a_reason(text: str) -> None:
    with contextlib.suppress(UserError):
        assert all(name and "=" not in name for name in parse(text))


GOOD = "source=data.yaml\nepochs=3\nendpoint=detector"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("source=x\nepochs", "the line 'epochs', which is not NAME=VALUE"),
        ("source=x\nepochs=3\nepochs=4", "names epochs twice"),
        ("source=x\nepoch=3", "epoch is not a parameter"),
        ("source=x\nepochs=many", "epochs is 'many'"),
        ("epochs=3", "source"),
        ("source=x\nendpoint=other", "endpoint is 'detector', but parameters says 'other'"),
    ],
)
def test_wrong_lines_are_refused(lines: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configuration(lines, "detector", "code")


BEYOND: dict[str, object] = {
    "source": "",
    "max_bad_fraction": 1.5,
    "max_megapixels": 0,
    "val_fraction": 0.6,
    "test_fraction": 0,
    "group_pattern": "(",
    "grow_from": "yesterday",
    "architecture": "no name",
    "image_size": 33,
    "epochs": 0,
    "batch": -1,
    "learning_rate": 0,
    "class_gain": -1,
    "mosaic": 2,
    "flip": -0.1,
    "scale": "nan",
    "workers": 0,
    "cpus_per_worker": 0,
    "gpus_per_worker": -1,
    "seed": -1,
    "start_from": "yesterday",
    "min_map50": 1.1,
    "min_class_map50": -1,
    "margin": 2,
    "min_images": 0,
    "old_margin": -0.1,
    "max_latency_ms": 0,
    "max_size_mb": "inf",
    "model": "Not A Name",
    "endpoint": "UPPER",
    "ready_timeout_s": 0,
    "canary_steps": "10%",
    "step_requests": 0,
    "max_requests": 0,
    "max_seconds": 0,
    "look_s": 0,
    "error_margin": 0,
    "slow_margin": 1,
    "replays": -1,
}


@pytest.mark.parametrize("name", config.names_of(config.FLYWHEEL))
def test_every_parameter_has_a_limit_that_resolve_minds(name: str) -> None:
    lines = "\n".join(f"{key}={value}" for key, value in {"source": "x", name: BEYOND[name]}.items())
    with pytest.raises(UserError, match=name) as caught:
        configuration(lines, "detector", "code")
    assert str(BEYOND[name]) in caught.value.message


def test_the_configuration_is_what_was_meant_not_how_it_was_written() -> None:
    first = configuration("source=x\nmargin=0.050", "detector", "code")
    assert first == configuration("margin=5e-2\n\nsource=x\nendpoint=detector", "detector", "code")
    assert first != configuration("source=x\nmargin=0.051", "detector", "code")
    assert first != configuration("source=x\nmargin=0.050", "detector", "newer code")
    assert first != configuration("source=x\nmargin=0.050", "other", "code")
    assert configuration("", "detector", "code") == configuration("\n", "detector", "code")


def test_the_champion_is_looked_up_in_each_run(world: World, tmp_path: Path) -> None:
    platform = world.platform.line()
    first = run(str(tmp_path / "1"), GOOD, "detector", platform, "run-1")
    assert Resolution.read(tmp_path / "1").champion is None
    champion = Release(
        id="r1",
        lineage=Lineage(code="c", image="i", run="r"),
        model="detector",
        version="1",
        package="p",
        package_uri="p",
        dataset="data-1",
        report="e",
    )
    versions = {"v1": Served(release=champion, weight=100)}
    world.serving.write(world.serving.read("detector").but(stable="v1", versions=versions))
    second = run(str(tmp_path / "2"), GOOD, "detector", platform, "run-2")
    resolved = Resolution.read(tmp_path / "2")
    assert resolved.champion == champion
    assert resolved.config == second == first
    assert resolved.id != Resolution.read(tmp_path / "1").id
    assert "detector version 1, trained on data data-1" in run_records(world.store, "run-2")[0].sentence


def test_a_wrong_parameter_ends_the_step_as_a_users_mistake(world: World, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(str(tmp_path / "1"), GOOD + "\nbatch=0", "detector", world.platform.line(), "run-1")
    assert ended.value.code == 2
    assert run_records(world.store, "run-1")[0].sentence.startswith("batch is '0'")
    assert not (tmp_path / "1").exists()
