"""Ways to people: what arrives there, what is tried again, and that an address never shows."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kfp_flywheel.components.runtime.adapters.notices import (
    LogNotifier,
    PostNotifier,
    as_slack,
    as_webhook,
)
from kfp_flywheel.components.runtime.config import Platform
from kfp_flywheel.components.runtime.errors import PlatformError, UserError
from kfp_flywheel.components.runtime.ports import Notice
from kfp_flywheel.components.runtime.wiring import connect

from tests.faulty import Fault, Faulty, in_front_of

NOTICE = Notice(key="k/1", level="warning", title="train failed", text="<b> & too\nlittle", next="flywheel status > x")
SECRET = "T0SECRET"


class Inbox(ThreadingHTTPServer):
    """Takes what is posted, and answers with a status."""

    def __init__(self, status: int = 200) -> None:
        inbox = self
        self.status, self.got = status, list[dict[str, object]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                inbox.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(inbox.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with Inbox() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def faulty(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """The inbox behind something that fails; its address is in HOOK."""
    with in_front_of(inbox.url) as front:
        monkeypatch.setenv("HOOK", f"{front.url}/services/{SECRET}")
        yield front


def hook() -> PostNotifier:
    return PostNotifier("HOOK", as_webhook, pause_s=0)


def test_the_log_has_it_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    LogNotifier().send(NOTICE)
    assert capsys.readouterr().out == ("flywheel | notify: train failed. <b> & too little Next: flywheel status > x\n")


def test_a_webhook_gets_the_notice(faulty: Faulty, inbox: Inbox) -> None:
    hook().send(NOTICE)
    assert inbox.got == [NOTICE.plain()]


def test_slack_gets_a_message_with_its_signs_escaped(faulty: Faulty, inbox: Inbox) -> None:
    PostNotifier("HOOK", as_slack).send(NOTICE)
    assert inbox.got == [
        {"text": ":warning: *train failed*\n&lt;b&gt; &amp; too\nlittle\nNext: flywheel status &gt; x"}
    ]


@given(st.text(), st.text())
def test_whatever_a_notice_says_slack_reads_the_same(title: str, text: str) -> None:
    message = as_slack(Notice(key="k", level="info", title=title, text=text[:3000]))["text"]
    assert not set("<>") & set(message)
    read = message.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert read == f"*{title}*\n{text[:3000]}"


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_what_fails_twice_is_tried_a_third_time(fault: Fault, faulty: Faulty, inbox: Inbox) -> None:
    faulty.plan = [("POST", fault)] * 2
    hook().send(NOTICE)
    assert faulty.plan == []
    assert inbox.got[-1] == NOTICE.plain()


def test_what_fails_three_times_is_said_without_the_address(faulty: Faulty, inbox: Inbox) -> None:
    faulty.plan = [("POST", "503")] * 4
    with pytest.raises(PlatformError, match=r"^the address in HOOK answered 503\. Next: correct HOOK") as raised:
        hook().send(NOTICE)
    assert faulty.plan == [("POST", "503")]
    assert inbox.got == []
    assert SECRET not in repr(raised.getrepr(chain=True))


@pytest.mark.parametrize("status", [302, 404])
def test_a_wrong_address_is_asked_once(status: int, faulty: Faulty, inbox: Inbox) -> None:
    inbox.status = status
    with pytest.raises(PlatformError, match=f"answered {status}"):
        hook().send(NOTICE)
    assert len(inbox.got) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "the environment variable HOOK is not set"),
        (" ", "the environment variable HOOK is not set"),
        (f"ftp://host/{SECRET}", "HOOK holds no https:// address"),
        (f"/etc/{SECRET}", "HOOK holds no https:// address"),
        (f"https://host/{SECRET} and more", "HOOK is not an address"),
        (f"https://host:{SECRET}/", "HOOK is not an address"),
        (f"http://127.0.0.1:1/{SECRET}", "HOOK cannot be reached: Connection refused"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_it(
    address: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    if address is not None:
        monkeypatch.setenv("HOOK", address)
    with pytest.raises(PlatformError, match=said) as raised:
        hook().send(NOTICE)
    assert raised.value.next
    assert SECRET not in str(raised.value)


def test_a_platform_names_its_ways_to_people(platform: Platform) -> None:
    ways = connect(platform.but(notify=("log://", "slack://HOOK", "webhook://HOOK"))).notifiers
    assert list(ways) == ["log://", "slack://HOOK", "webhook://HOOK"]
    assert isinstance(ways["log://"], LogNotifier)
    assert isinstance(ways["slack://HOOK"], PostNotifier)


def test_an_address_in_the_platform_itself_is_refused_and_not_repeated(platform: Platform) -> None:
    with pytest.raises(UserError) as raised:
        Platform.of(**platform.plain() | {"notify": [f"slack://https://host/{SECRET}"]})
    assert "slack" in raised.value.message
    assert "notify" in raised.value.next
    assert SECRET not in str(raised.value)
