"""The same work on many items, over the CPU cores: in order, with few in flight, and told to whoever watches."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .lines import say

Item = TypeVar("Item")
Result = TypeVar("Result")

QUIET = 200
"""Items between two progress lines at least: short work needs none."""


def each(work: Callable[[Item], Result], items: Sequence[Item], said: str, threads: int = 0) -> Iterator[Result]:
    """Do the work on each item in threads: for work that leaves the interpreter (files, hashes, decoders).

    Args:
        work: Its first error ends the whole; what is not begun by then is left.
        items: What to work on.
        said: Begins each progress line, for example "validate: decoded"; empty says nothing.
        threads: As many as there are CPU cores, unless the work mostly waits.

    Yields:
        The results, in the order of the items.
    """
    threads = threads or os.cpu_count() or 1
    stride = max(QUIET, -(-len(items) // 10))
    flying: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for done, item in enumerate(items):
                flying.append(pool.submit(work, item))
                if len(flying) > 4 * threads:
                    yield flying.popleft().result()
                if said and done and done % stride == 0:
                    say(f"{said} {done} of {len(items)}")
            while flying:
                yield flying.popleft().result()
        finally:
            for future in flying:
                future.cancel()
