"""Whether the traffic is divided as it was asked for: by counting who answers, never by what a specification says."""

from collections.abc import Callable

from scipy.stats import binomtest

ENOUGH = 10
"""Answers that the smaller share should get, of LEAST in all or more."""
LEAST = 100
SURE = 1e-4
"""Chance of an answer count below which the share is another one. A gateway that takes turns is always within."""


def wrong_split(answered_by: Callable[[], str], version: str, weight: int) -> str:
    """What is wrong with a version's share, or nothing.

    Args:
        answered_by: Asks the public address once, and gives the version that answered; empty for none.
        weight: The share that was asked for, in percent, above 0 and below 100.
    """
    asked = max(LEAST, -(-100 * ENOUGH // min(weight, 100 - weight)))
    found = sum(answered_by() == version for _ in range(asked))
    if binomtest(found, asked, weight / 100).pvalue >= SURE:
        return ""
    return f"{found} of {asked} answers came from {version}, and {weight} % were asked for"
