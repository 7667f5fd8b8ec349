"""The rules of the architecture that no linter knows."""

import ast
import builtins
import dis
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kfp_flywheel.components.runtime import config
from kfp_flywheel.pipelines import catalogue

REPO = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("components", "pipelines") for path in (REPO / folder).rglob("*.py"))
COMPONENTS = catalogue.components()
PIPELINES = catalogue.pipelines()


@pytest.mark.parametrize(
    "path", SOURCES + sorted((REPO / "tests").rglob("*.py")), ids=lambda p: str(p.relative_to(REPO))
)
def test_the_package_is_imported_under_its_installed_name_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in {"components", "pipelines"}, f"{path}:{node.lineno} imports {name}"


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel without a word."""
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists(), path.parent


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_contract_is_short_and_holds_one_import_and_one_call(name: str) -> None:
    path = REPO / "components" / name / "component.py"
    function = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    assert ast.get_docstring(function)
    # What stands once a parameter, in the signature and in the docstring, is no logic.
    assert function.end_lineno is not None
    assert function.end_lineno - function.body[1].lineno <= 30
    statements = function.body[1:]
    assert len(statements) == 2
    assert isinstance(statements[0], ast.ImportFrom)
    assert isinstance(statements[1], ast.Return)
    assert isinstance(statements[1].value, ast.Call)


def defaults(component: object) -> dict[str, object]:
    spec = component.component_spec.inputs or {}  # type: ignore[attr-defined]
    return {name: given.default for name, given in spec.items()}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_has_the_defaults_of_its_section(name: str) -> None:
    section = {kind.__name__.lower(): kind for kind in config.SECTIONS}.get(name)
    given = defaults(COMPONENTS[name])
    assert {"platform", "run_id"} <= given.keys()
    for parameter in config.parameters_of(section) if section else ():
        assert parameter.name in given, f"{name} lacks {parameter.name}"
        if parameter.default is not config.REQUIRED:
            assert given[parameter.name] == parameter.default, parameter.name


def test_the_flywheel_has_every_parameter_with_its_default_and_description() -> None:
    spec = PIPELINES["flywheel"].component_spec.inputs
    names = config.names_of(config.FLYWHEEL)
    assert set(spec) == {*names, "platform"}
    for name in names:
        parameter = config.PARAMETERS[name]
        assert spec[name].default == (None if parameter.default is config.REQUIRED else parameter.default), name
        assert spec[name].description.rstrip(".") == parameter.description, name


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_tells_people_how_its_run_went(name: str) -> None:
    """Of a step that died without a word, only its name among the others tells."""
    spec = PIPELINES[name].pipeline_spec
    given = spec.root.dag.tasks["notify"].inputs.parameters
    containers = [executor["container"] for executor in spec.deployment_spec["executors"].values()]
    steps = {container["args"][3] for container in containers} - {"notify"}
    assert given["pipeline"].runtime_value.constant.string_value == name
    assert set(given["steps"].runtime_value.constant.string_value.split()) == steps
    assert given["status"].task_final_status.producer_task.startswith("exit-handler")


def test_every_component_input_is_described() -> None:
    for name, component in COMPONENTS.items():
        for field, given in component.component_spec.inputs.items():
            assert given.description, f"{name}.{field} has no line in the docstring's Args"


def test_stages_import_nothing_heavy() -> None:
    """What a step costs over its own work is mostly imports."""
    modules = [f"kfp_flywheel.components.{name}.stage" for name in COMPONENTS]
    code = f"""
import importlib, sys
for name in {modules!r}: importlib.import_module(name)
print(*[m for m in ("torch", "ultralytics", "ray", "mlflow", "kserve", "kfp", "sklearn", "pandas") if m in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


LOCKS = [REPO / "images/build.lock", *sorted(REPO.glob("images/*/requirements.lock"))]


def locked(path: Path) -> dict[str, set[str]]:
    """Hashes by name and version."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        if "==" in line:
            hashes = found.setdefault(line.split()[0], set())
        elif "--hash=" in line:
            hashes.add(line.split("--hash=")[1].split()[0])
    return found


@pytest.mark.parametrize("path", [REPO / "requirements.lock", *LOCKS], ids=lambda path: str(path.relative_to(REPO)))
def test_no_registry_address_stands_in_a_lock(path: Path) -> None:
    assert "://" not in path.read_text()


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(REPO)))
def test_what_goes_into_an_image_is_what_the_tests_ran_with(path: Path) -> None:
    everything, image = locked(REPO / "requirements.lock"), locked(path)
    assert image
    assert all(everything.get(name) == hashes for name, hashes in image.items()), "make lock"


def test_every_profile_has_an_image_and_only_one_of_them_holds_torch() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    profiles = {path.parent.name for path in LOCKS[1:]}
    assert profiles == {"steps", "train", "serve"} <= extras.keys()
    for profile in profiles:
        names = {name.partition("==")[0] for name in locked(REPO / f"images/{profile}/requirements.lock")}
        assert ({"torch", "ultralytics"} <= names) is (profile == "train")
        assert "opencv-python-headless" in names
        assert "opencv-python" not in names
        assert {"boto3", "google-cloud-storage"} <= names, "every pod reaches the store"


def test_source_of_components_is_what_kfp_ships() -> None:
    """KFP ships the function's source alone: a name of the module in it would be a NameError in the pod."""
    for name, component in COMPONENTS.items():
        globals_used = {i.argval for i in dis.get_instructions(component.python_func) if i.opname == "LOAD_GLOBAL"}
        assert not globals_used - vars(builtins).keys(), name
