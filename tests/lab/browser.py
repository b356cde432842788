"""A real browser that shows a page: Debian's Chromium without a window, spoken to over a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import typing as t
from pathlib import Path

from tests.lab.engine import LabError

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe", *(f"--disable-{what}" for what in QUIET)]


class NoBrowser(LabError):
    """There is none here."""


class Browser:
    """One page of a browser at a time."""

    def __init__(self, to: t.BinaryIO, out: t.BinaryIO) -> None:
        self._to, self._out, self._number, self._session = to, out, 0, ""

    def _ask(self, method: str, **params: t.Any) -> dict[str, t.Any]:
        self._number += 1
        message: dict[str, t.Any] = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise LabError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _read(self) -> dict[str, t.Any]:
        told = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            if not byte:
                raise LabError("the browser has ended")
            told += byte
        return dict(json.loads(told))

    def show(self, page: Path, width: int, dark: bool = False) -> None:
        """Load a page as on a screen of that width."""
        if not self._session:
            target = self._ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self._ask("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self._ask("Page.enable")
        self._ask("Page.navigate", url=page.as_uri())
        while not (self.run("document.readyState") == "complete" and self.run("location.href") == page.as_uri()):
            pass

    def run(self, script: str) -> t.Any:
        """What a script says that is run in the page; the page's own rules do not hold for it."""
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def picture(self, path: Path, height: int = 0) -> None:
        """The page from its top, whole or so many pixels of it."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(height or size["height"], size["height"]), "scale": 1}
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))

    def printed(self, path: Path) -> None:
        """The page on paper."""
        path.write_bytes(base64.b64decode(self._ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]))


@contextlib.contextmanager
def browser() -> t.Iterator[Browser]:
    """A browser with a profile of its own, which is gone with it."""
    program = shutil.which("chromium")
    if not program:
        raise NoBrowser("there is no chromium here: as root, apt-get install --no-install-recommends chromium")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="browser-lab-", ignore_cleanup_errors=True))
        asked, to = os.pipe()
        out, told = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={folder}"]
        shell = ["bash", "-c", f'exec "$@" 3<&{asked} 4>&{told}', "bash"]
        running = subprocess.Popen([*shell, *command], pass_fds=(asked, told), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        stack.callback(running.wait, 30)
        stack.callback(running.terminate)
        os.close(asked)
        os.close(told)
        with open(to, "wb") as writer, open(out, "rb") as reader:
            yield Browser(writer, reader)
