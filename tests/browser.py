"""A real browser, driven over pipes by Chrome's DevTools protocol."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.real_processes import end

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"Tab": {"windowsVirtualKeyCode": 9}, "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"}}


@dataclass
class Browser:
    """A browser that runs; what it tells beside its answers is in `events`."""

    orders: IO[bytes]
    answers: IO[bytes]
    events: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self.number += 1
        order = {"id": self.number, "method": method, "params": parameters}
        self.orders.write(json.dumps(order | ({"sessionId": session} if session else {})).encode() + b"\0")
        self.orders.flush()
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, method: str, session: str) -> None:
        """Wait until the browser tells something of a page."""
        while not any((one["method"], one.get("sessionId")) == (method, session) for one in self.events):
            self.events.append(self._read())

    def open(self, path: Path, width: int, scheme: str) -> "Page":
        """Open a file in a window of a width, for somebody who likes the light or the dark."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, path.as_uri())
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.call("Network.enable")
        page.call("Page.enable")
        page.call("Page.navigate", url=page.url)
        self.wait_for("Page.loadEventFired", session)
        return page

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return json.loads(text)


@dataclass
class Page:
    """An open page."""

    browser: Browser
    session: str
    url: str

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression is on the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key of the keyboard."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **KEYS[key])
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **KEYS[key])

    @property
    def asked(self) -> set[str]:
        """Whatever the page has asked anybody for."""
        return {
            event["params"]["request"]["url"]
            for event in self.browser.events
            if (event["method"], event.get("sessionId")) == ("Network.requestWillBeSent", self.session)
        }


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser without a window; its files are in a folder."""
    assert PROGRAM
    (ours, theirs), (read, written) = os.pipe(), os.pipe()
    # It reads from 3 and writes to 4, which may be taken here.
    given = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (ours, written)]
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
    process = subprocess.Popen(
        (PROGRAM, *options, f"--user-data-dir={folder}"),
        preexec_fn=lambda: [os.dup2(one, fd) for fd, one in zip((3, 4), given, strict=True)] and None,
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for one in (ours, written, *given):
        os.close(one)
    try:
        with open(theirs, "wb") as orders, open(read, "rb", buffering=0) as answers:
            yield Browser(orders, answers)
    finally:
        end(process)
