"""Headless Chromium over its debugging pipe: load a page, ask it questions, hear its complaints."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
)
PATIENCE = 60  # seconds


class Page:
    """One page at a time. ``requests`` and ``complaints`` collect what it asked for and what its console says."""

    def __init__(self, profile: Path):
        from_browser, to_test = os.pipe()
        to_browser_end, self._write = os.pipe()
        self._read = from_browser
        line = f'exec "{CHROMIUM}" {FLAGS} --user-data-dir="{profile}" 3<&{to_browser_end} 4>&{to_test}'
        self._process = subprocess.Popen(
            ["bash", "-c", line],
            pass_fds=(to_browser_end, to_test),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser_end)
        os.close(to_test)
        self._buffer, self._number, self._session = b"", 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> "Page":
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._read)
        os.close(self._write)

    def open(self, file: Path, width: int = 1280, dark: bool = False) -> None:
        """Load a file at a window width, and wait until all of it is there."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=features)
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=file.resolve().as_uri())
        self._wait_for("Page.loadEventFired")

    def show_as(self, medium: str) -> None:
        """Lay the page out for another medium: "print" or "screen"."""
        self._call("Emulation.setEmulatedMedia", media=medium)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def becomes(self, expression: str) -> bool:
        """Whether a JavaScript expression comes true in time: Chromium chooses a picture's source after it answers."""
        deadline = time.monotonic() + PATIENCE
        while not (true := bool(self.ask(expression))) and time.monotonic() < deadline:
            time.sleep(0.02)
        return true

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._listen(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while (message := self._next()).get("method") != event:
            self._listen(message)

    def _listen(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(parameters))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(self._read, 1 << 16) if ready else b""
            assert chunk, "Chromium fell silent"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
