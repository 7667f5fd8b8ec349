"""When a version truly serves: the public address answers with it, and as its trainer saw."""

import time
from collections.abc import Callable

from ..runtime.artifacts import Release
from ..runtime.errors import Conflict, PlatformError
from ..runtime.ports import Serving

LOOK_S = 0.1


def until_it_answers(
    serving: Serving,
    endpoint: str,
    version: str,
    release: Release,
    timeout_s: float,
    ask: Callable[[str], str],
    tell: Callable[[str], None],
) -> str:
    """Wait until the endpoint's public address answers with a version, and give that address.

    Args:
        timeout_s: Seconds to wait at most.
        ask: Is handed the address, and gives what is wrong with its answers, or nothing.
        tell: Receives each new reason why it is not ready yet.

    Raises:
        PlatformError: It does not, with the model server's own reason.
        Conflict: Somebody made another release the champion meanwhile.
    """
    deadline, told, failure = time.monotonic() + timeout_s, "", ""
    while True:
        url = serving.url(endpoint)
        seen = serving.observe(endpoint).get(version) if url else None
        if seen and seen.ready:
            reason = ask(url)
        elif url:
            reason = seen.reason if seen and seen.reason else "starting"
        else:
            reason = "nothing serves this endpoint; next: flywheel serve"
        if url and not reason:
            return url
        champion = serving.read(endpoint).champion
        if champion is None or champion.id != release.id:
            raise Conflict(
                f"{version} was taken from endpoint {endpoint} while it was starting.", "flywheel status shows why"
            )
        if reason != told:
            told = reason
            tell(f"endpoint {endpoint}: {version}: {reason}")
        failure = failure if reason == "starting" and failure else reason  # a restart hides why it failed
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    if not serving.url(endpoint):
        raise PlatformError(f"nothing serves endpoint {endpoint}.", "flywheel serve; then run the same command again")
    raise PlatformError(
        f"endpoint {endpoint} did not answer with {version} within {timeout_s:g} s: {failure}",
        "mend the reason, then run the same command again",
    )
