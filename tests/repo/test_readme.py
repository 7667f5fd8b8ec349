"""The README's snippets work as written; its two set-up commands are for a person in a fresh clone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """An empty folder as the README assumes it: a data set at path/to, the repository's .venv, small.yaml."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copytree(shapes.parent, here / "path" / "to")
    shutil.copy(next((shapes.parent / "images" / "test").iterdir()), here / "path" / "to" / "image.jpg")
    (here / ".venv").symlink_to(Path(sys.prefix))
    (here / "small.yaml").write_text(next(text for kind, text in BLOCKS if kind == "yaml"))
    return here


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        ["bash", "-ec", f"set -m\nsource .venv/bin/activate\n{script}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_the_set_up_commands_are_targets_of_the_makefile() -> None:
    commands = next(text for kind, text in BLOCKS if kind == "console").split("\n")
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE)
    assert [command for command in commands if command] == ["make demo", "make test"]
    assert {"demo", "test"} <= set(targets)


@pytest.mark.parametrize("number", range(sum(kind == "bash" for kind, _ in BLOCKS)))
def test_shell_snippets_run_one_after_another(number: int, folder: Path) -> None:
    script = [text for kind, text in BLOCKS if kind == "bash"][number]
    # A person waits for the server to say that it serves before asking; a script has to be told to.
    waiting = "until flywheel status --json | grep -q '\"ready\": true'; do :; done"
    done = bash(script.replace(" &\n", f" &\n{waiting}\n"), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    if "predict" in script:
        assert (folder / "boxes.jpg").stat().st_size > 0


def test_the_commands_of_the_wheel_have_the_options_that_are_shown() -> None:
    from kfp_flywheel.pipelines.cli import app
    from typer.main import get_command

    lines = [line.split("#")[0].split() for kind, text in BLOCKS if kind == "shell" for line in text.splitlines()]
    ours = [words for program, *words in lines if program == "flywheel"]
    assert len(ours) > 10
    for words in ours:
        command, rest = get_command(app), words
        while named := getattr(command, "commands", {}):
            command, rest = named[rest[0]], rest[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words


def test_the_python_snippet_runs(folder: Path) -> None:
    (folder / "mine.py").write_text(next(text for kind, text in BLOCKS if kind == "python"))
    done = bash("python mine.py", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validate: " in done.stdout


def test_links_lead_somewhere() -> None:
    for document in [REPO / "README.md", *REPO.glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document}: {link}"
