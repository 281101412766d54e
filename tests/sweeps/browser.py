"""Headless Chromium, driven through the DevTools protocol on a pipe: what a reader's browser makes of the report.

with Page(path) as page:
    page.evaluate("document.title")
    page.requested            # every address that it asked for
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No sandbox: tests run as root in containers. The rest keeps the browser itself from asking for anything.
FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"


class Page:
    """One page in a browser of its own."""

    def __init__(self, path: Path, width: int = 1400, dark: bool = False, timeout_s: float = 60.0) -> None:
        self.path, self.width, self.dark, self.timeout_s = path, width, dark, timeout_s
        self.requested: list[str] = []
        self._number, self._buffer = 0, b""
        self._session: str | None = None

    def __enter__(self) -> Page:
        assert CHROMIUM is not None
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = f'exec "{CHROMIUM}" {FLAGS} --user-data-dir="{self._profile.name}" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Network", "Page", "Runtime"):
                self.call(f"{domain}.enable")
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
            self.call("Emulation.setEmulatedMedia", features=[scheme])
            size = {"width": self.width, "height": 900, "deviceScaleFactor": 1, "mobile": self.width < 600}
            self.call("Emulation.setDeviceMetricsOverride", **size)
            self.call("Page.navigate", url=self.path.resolve().as_uri())
            self._until("Page.loadEventFired")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def type(self, text: str) -> None:
        """Into what has the focus, as keys would."""
        self.call("Input.insertText", text=text)

    def click(self, element: str) -> None:
        """The mouse on the middle of what a JavaScript expression names."""
        script = "(e => {e.scrollIntoView({block: 'center', inline: 'center'}); const b = e.getBoundingClientRect();"
        x, y = self.evaluate(f"{script} return [b.x + b.width / 2, b.y + b.height / 2]}})({element})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, target: Path) -> None:
        """All of the page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(shot["data"]))

    def _until(self, event: str) -> None:
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, f"the browser said nothing for {self.timeout_s:.0f} s, or ended"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        return message
