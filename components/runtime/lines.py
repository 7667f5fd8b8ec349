"""Lines for whoever watches a run: printed by steps and jobs, and picked out of all else that these print."""

MARK = "flywheel | "
"""Begins each of them."""


def say(line: str) -> None:
    """Print one."""
    print(f"{MARK}{line}", flush=True)


def heard(printed: str) -> str:
    """What such a line says; nothing where it is somebody else's."""
    return printed.partition(MARK)[2]
