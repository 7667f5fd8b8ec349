"""Whether the traffic is divided as it was asked for: by counting who answers, never by what a specification says."""

from collections.abc import Callable, Sequence

from scipy.stats import binomtest

from .evidence import Look

ENOUGH = 10
"""Answers that the smaller share should get, of LEAST in all or more."""
LEAST = 100
BEGUN_S = 10.0
"""Seconds in which a gateway begins to copy."""
SURE = 1e-4
"""Chance of an answer count below which the share is another one. A gateway that takes turns is always within."""


def wrong_split(answered_by: Callable[[], str], version: str, weight: int) -> str:
    """What is wrong with a version's share, or nothing.

    Args:
        answered_by: Asks the public address once, and gives the version that answered; empty for none.
        weight: The share that was asked for, in percent, below 100.
    """
    asked = max(LEAST, -(-100 * ENOUGH // (min(weight, 100 - weight) or 100)))
    found = sum(answered_by() == version for _ in range(asked))
    if binomtest(found, asked, weight / 100).pvalue >= SURE:
        return ""
    return f"{found} of {asked} answers came from {version}, and {weight} % were asked for"


def not_copied(looks: Sequence[Look]) -> str:
    """What is wrong with a gateway that is to copy requests, or nothing: by what the copies' receiver counts.

    The first counts are of requests before it was told to, too, and it may take some seconds to do as it is told.
    """
    copied = [look for look in looks if look.shadow and look.stable.requests + look.canary.requests]
    asked = sum(look.stable.requests for look in copied[1:] if look.at >= copied[0].at + BEGUN_S)
    if asked < 2 * LEAST or any(look.canary.requests for look in copied):
        return ""
    return f"the gateway copied none of {asked} requests; take 0 out of canary_steps."
