"""Waiting, in tests and for servers: look until something is so."""

import time
from collections.abc import Callable


def wait_for(ready: Callable[[], bool], seconds: float = 120, what: str = "what is waited for") -> None:
    """Look until something is so.

    Raises:
        TimeoutError: It is not, in time.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} is not so after {seconds:g} s")
        time.sleep(0.05)
