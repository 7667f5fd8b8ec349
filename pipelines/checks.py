"""What `flywheel doctor` makes of each thing that it looks at."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and the command that mends it."""

    name: str
    ok: bool
    found: str
    next: str = ""


Probe = Callable[[], Check]
