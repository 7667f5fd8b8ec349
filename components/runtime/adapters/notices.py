"""Ways to people: a line in the log, a document to a webhook, a message in Slack's format.

An address is a secret. It comes by the name of an environment variable, and nothing here ever shows it: of an error
only what cannot hold it is told.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from ..errors import PlatformError
from ..lines import say
from ..ports import Notice

TRIES = 3
PAUSE_S = 0.5
TIMEOUT_S = 5.0
SLACK_TEXT = 3000
"""Characters of a message: Slack cuts longer ones into several."""


class LogNotifier:
    """`log://`: one line for whoever watches the run."""

    def send(self, notice: Notice) -> None:
        line = f"{notice.title}. {notice.text}" + (f" Next: {notice.next}" if notice.next else "")
        say(f"notify: {' '.join(line.split())}")


class PostNotifier:
    """`webhook://ENV`, `slack://ENV`: a JSON document by HTTP.

    Args:
        variable: Name of the environment variable that holds the address.
        document: Makes it of a notice.
        pause_s: Seconds before the second try; doubled each time.
    """

    def __init__(self, variable: str, document: Callable[[Notice], dict[str, Any]], pause_s: float = PAUSE_S) -> None:
        self._variable, self._document, self._pause_s = variable, document, pause_s
        self._opener = urllib.request.build_opener(_NoRedirect())

    def send(self, notice: Notice) -> None:
        address = os.environ.get(self._variable, "").strip()
        if not address:
            raise PlatformError(
                f"the environment variable {self._variable} is not set: it holds the address.",
                f"set {self._variable}, or name its secret under pods.secrets in the platform file",
            )
        if not address.startswith(("https://", "http://")):
            raise PlatformError(f"{self._variable} holds no https:// address.", f"correct {self._variable}")
        body = json.dumps(self._document(notice)).encode()
        for attempt in range(TRIES):
            problem, again = self._post(address, body)
            if not problem:
                return
            if not again or attempt == TRIES - 1:
                break
            time.sleep(self._pause_s * 2**attempt)
        raise PlatformError(
            f"the address in {self._variable} {problem}.", f"correct {self._variable}, or see whether it is up"
        )

    def _post(self, address: str, body: bytes) -> tuple[str, bool]:
        """What went wrong, if anything, and whether it may go well another time."""
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
            with self._opener.open(request, timeout=TIMEOUT_S):
                return "", False
        except urllib.error.HTTPError as error:
            error.close()
            return f"answered {error.code}", error.code >= 500 or error.code == 429
        except urllib.error.URLError as error:
            reason = error.reason
            return f"cannot be reached: {getattr(reason, 'strerror', '') or type(reason).__name__}", True
        except (http.client.InvalidURL, ValueError):  # their texts hold it
            return "is not an address", False
        except (OSError, http.client.HTTPException) as error:
            return f"cannot be reached: {type(error).__name__}", True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and look as if it had been delivered."""

    def redirect_request(self, *given: Any) -> None:
        return None


def as_webhook(notice: Notice) -> dict[str, Any]:
    """The notice itself; its `key` lets a receiver drop what comes twice."""
    return notice.plain()


def as_slack(notice: Notice) -> dict[str, Any]:
    """A message, with the three characters escaped that mean something to Slack wherever they stand."""
    mark = ":warning: " if notice.level == "warning" else ""
    lines = [f"{mark}*{_escaped(notice.title)}*", _escaped(notice.text[:SLACK_TEXT])]
    if notice.next:
        lines.append(f"Next: {_escaped(notice.next)}")
    return {"text": "\n".join(lines)}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
