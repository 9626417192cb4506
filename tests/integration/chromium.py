"""A real Chromium without a window, driven through its DevTools socket."""

import asyncio
import base64
import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0")  # fmt: skip


class Tab:
    """One page. `problems` are what the browser complained about, `requests` the addresses that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result; events that come first are noted."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), 60)
            kind, told = message.get("method"), message.get("params", {})
            if kind == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
                self.requests.append(told["request"]["url"])
            if kind in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.problems.append(str(told)[:400])
            self._loaded = self._loaded or kind == "Page.loadEventFired"
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def open(self, address: str, width: int = 1280, dark: bool = False) -> None:
        """Go to an address and wait until it has loaded."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=theme)
        self._loaded = False
        await self.call("Page.navigate", url=address)
        while not self._loaded:
            await self.call("Page.getFrameTree")
            await asyncio.sleep(0.05)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def wait(self, condition: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        for _ in range(int(seconds / 0.05)):
            if await self.run(condition):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {condition}")

    async def key(self, name: str, modifiers: int = 0, text: str = "") -> None:
        """Press and release a key; modifier 2 is Ctrl."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        given = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name], "modifiers": modifiers, "text": text}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **given)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    async def picture(self, path: Path) -> None:
        """Save what is seen."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def tab(profile: Path) -> AsyncIterator[Tab]:
    """A new browser with an empty profile, and its one page; both are gone when the block ends."""
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = profile / "DevToolsActivePort"
        for _ in range(300):
            if port.exists() and "\n" in port.read_text():
                break
            await asyncio.sleep(0.1)
        base = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/json") as answer:
                (target,) = [found for found in await answer.json() if found["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        browser.kill()
        browser.wait()
