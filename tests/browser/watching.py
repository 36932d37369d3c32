"""Watch the background: the browser's console, errors of pages, messages of kernels, requests to other hosts."""

import json
import re
import struct
import time
from itertools import pairwise
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Route, WebSocket

FOREIGN = re.compile(r"^(https?|wss?)://(?!127\.0\.0\.1[:/])")
# known and harmless
HARMLESS = (
    # Voilà's page requests icons from a content network, but the course's widgets do not use them
    r"^asked of another machine: https://cdn\.jsdelivr\.net/npm/@fortawesome/",
    r"^error in the console: Failed to load resource.*https://cdn\.jsdelivr\.net/npm/@fortawesome/",
)
QUIET = 0.1  # seconds of silence that count as the end
PATIENCE = 60.0  # seconds for a kernel to answer


class Watch:
    """Record errors on all pages of a browser context.

    Attributes:
        found: sentences, in the order of what happened.
    """

    def __init__(self, context: BrowserContext):
        self.found: list[str] = []
        self._unanswered: set[str] = set()
        context.route(FOREIGN, self._foreign)
        context.on("page", self._page)

    def check(self) -> None:
        """Clear the record, and fail if it contained anything that is not known to be harmless.

        Raises:
            AssertionError: something was found.
        """
        found, self.found = self.found, []
        bad = [each for each in found if not any(re.search(pattern, each) for pattern in HARMLESS)]
        assert not bad, "while this test ran:\n" + "\n".join(bad)

    def settle(self, page: Page) -> None:
        """Wait until the kernels have handled all messages.

        A widget keeps a change back while another one of its own is on its way, and a click does not wait for it: a
        person is slow enough for that, a test is not.
        """
        quiet_since = began = time.monotonic()
        while time.monotonic() - quiet_since < QUIET:
            page.wait_for_timeout(30)
            if self._unanswered:
                quiet_since = time.monotonic()
            assert time.monotonic() - began < PATIENCE, f"no answer from a kernel to {self._unanswered}"

    # ---------------------------------------------------------------------------------------------------- listening

    def _page(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"error in the page: {error}"))
        page.on("crash", lambda _: self.found.append("the page crashed"))
        page.on("websocket", self._websocket)
        page.on("close", lambda _: self._unanswered.clear())

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.found.append(f"error in the console: {message.text} ({message.location.get('url', '')})")

    def _foreign(self, route: Route) -> None:
        self.found.append(f"asked of another machine: {route.request.url}")
        route.abort()

    def _websocket(self, websocket: WebSocket) -> None:
        if "/channels" in websocket.url:
            websocket.on("framesent", self._sent)
            websocket.on("framereceived", self._received)
            websocket.on("socketerror", lambda error: self.found.append(f"error of a websocket: {error}"))

    def _sent(self, frame: str | bytes) -> None:
        message = parsed(frame)
        if message["channel"] == "shell":
            self._unanswered.add(message["header"]["msg_id"])

    def _received(self, frame: str | bytes) -> None:
        message = parsed(frame)
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle":
            self._unanswered.discard(message["parent_header"].get("msg_id", ""))
        elif kind == "error":
            self.found.append("error in the kernel: " + "\n".join(content["traceback"]))
        elif kind == "stream" and content["name"] == "stderr" and "Traceback" in content["text"]:
            self.found.append(f"error in the kernel, told on stderr: {content['text']}")


def parsed(frame: str | bytes) -> dict[str, Any]:
    """Parse a message of Jupyter: JSON, or offsets (their number first, 8 bytes each) and parts in JSON."""
    if isinstance(frame, str):
        return json.loads(frame)
    (count,) = struct.unpack_from("<Q", frame)
    channel, *parts = (frame[begin:end] for begin, end in pairwise(struct.unpack_from(f"<{count}Q", frame, 8)))
    names = ("header", "parent_header", "metadata", "content")
    return {"channel": channel.decode(), **{name: json.loads(part) for name, part in zip(names, parts, strict=False)}}
