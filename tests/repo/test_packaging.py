"""Wheel and sdist hold every module and data file; the editable install is the one that runs these tests."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
KEPT = {".py", ".yaml", ".typed"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    ignore = shutil.ignore_patterns(
        ".venv", ".git", "build", ".flywheel", "*.egg-info", "__pycache__", ".*_cache", "tests"
    )
    shutil.copytree(REPO, tree, ignore=ignore)
    build = [sys.executable, "-m", "build", "--no-isolation"]
    subprocess.run([*build, "--sdist", "--outdir", str(folder), str(tree)], check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    unpacked = next((folder / "unpacked").iterdir())
    subprocess.run([*build, "--wheel", "--outdir", str(folder), str(unpacked)], check=True, capture_output=True)
    return folder


def test_the_wheel_holds_every_file(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        found = {name for name in wheel.namelist() if name.startswith("kfp_flywheel/")}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    wanted = {
        f"kfp_flywheel/{path.relative_to(REPO)}"
        for folder in ("components", "pipelines")
        for path in (REPO / folder).rglob("*")
        if path.suffix in KEPT
    }
    assert found == wanted
    assert "License-Expression: Apache-2.0" in metadata


def test_the_wheel_works_alone(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    # -S leaves the editable install out; the dependencies are given back as plain folders.
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, *{[p for p in sys.path if p.endswith('site-packages')]!r}]\n"
        "import kfp_flywheel.components.runtime.config as c, kfp_flywheel.pipelines.cli; print(c.__file__)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path))
