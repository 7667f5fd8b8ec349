"""One at a time among processes that could all do the same: a Lease of the API server, as Kubernetes' own parts use."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ..errors import Conflict, FlywheelError
from .kubernetes import Kind, Objects, explained

LEASE = Kind("coordination.k8s.io", "v1", "leases")
SECONDS = 15.0


class Leadership:
    """The right to act, under a name.

    Args:
        identity: Who we are: another one for each process.
        clock: Seconds of a clock that never jumps.
    """

    def __init__(self, objects: Objects, name: str, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self._name, self._identity, self._clock = objects, name, identity, clock
        self.trouble = ""
        """Why it could not be asked for the last time; empty if it could."""
        self._renewed = -SECONDS
        self._seen: tuple[Any, float] = (None, 0.0)

    def holds(self) -> bool:
        """Whether it is ours; to be called often. It is renewed, or taken when its holder did not renew it in time."""
        now = self._clock()
        if now - self._renewed < SECONDS / 3:
            return True
        taken, self.trouble = False, ""
        try:
            with explained(f"lease {self._name} cannot be taken"):
                taken = self._take(now)
        except Conflict:
            pass  # another one was quicker
        except FlywheelError as error:
            self.trouble = error.message  # not now; another one may take it when the time is over
        if taken:
            self._renewed = now
        return now - self._renewed < 2 * SECONDS / 3

    def _take(self, now: float) -> bool:
        found = self._objects.get(LEASE, self._name)
        renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": int(SECONDS), "renewTime": renewed}
        if found is None:
            wanted = {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": {"name": self._name}}
            return self._objects.create(LEASE, wanted | {"spec": spec | {"acquireTime": renewed}})
        record = found.get("spec") or {}
        if record.get("holderIdentity") not in ("", None, self._identity):
            if self._seen[0] != record:
                self._seen = (record, now)
            if now - self._seen[1] < record.get("leaseDurationSeconds", SECONDS):
                return False
            spec |= {"acquireTime": renewed, "leaseTransitions": record.get("leaseTransitions", 0) + 1}
        self._objects.replace(LEASE, {**found, "spec": {**record, **spec}})
        return True

    def give_back(self) -> None:
        """Let another one take it at once; where that cannot be done, it runs out."""
        with contextlib.suppress(FlywheelError), explained(f"lease {self._name} cannot be given back"):
            found = self._objects.get(LEASE, self._name)
            if found and found["spec"].get("holderIdentity") == self._identity:
                self._objects.replace(LEASE, {**found, "spec": {**found["spec"], "holderIdentity": ""}})
