"""What the dashboard shows of a step beside its page: numbers, and links to where more is to be seen."""

from collections.abc import Callable, Mapping
from pathlib import Path

Log = Callable[[str, float], None]
"""KFP's `Metrics.log_metric`."""


def nothing(name: str, value: float) -> None:
    """A log that keeps nothing."""


def write_links(path: str, links: Mapping[str, str]) -> None:
    """Write a Markdown list: a link where the value is an address, else the value as code; empty ones are left out.

    Args:
        path: Of the artifact; empty for none.
    """
    if path:
        lines = [f"- {_entry(text, to)}\n" for text, to in links.items() if to]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(lines))


def _entry(text: str, to: str) -> str:
    return f"[{text}]({to})" if to.startswith(("http://", "https://")) else f"{text}: `{to}`"


def mlflow_run(tracking: str, run: str) -> str:
    """Address of a run in MLflow's own page; its id where MLflow has none."""
    return f"{tracking.rstrip('/')}/#/experiments/0/runs/{run}" if run and tracking.startswith("http") else run


def mlflow_version(tracking: str, model: str, version: str) -> str:
    """Address of a version in MLflow's registry; its name where MLflow has no page."""
    page = f"{tracking.rstrip('/')}/#/models/{model}/versions/{version}"
    return page if tracking.startswith("http") else f"{model} version {version}"
