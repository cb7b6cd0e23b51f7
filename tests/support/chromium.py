"""A headless Chromium, driven through its DevTools protocol over a pipe: no port, no driver, no package.

`--remote-debugging-pipe` reads commands from file 3 and writes answers and events to file 4, JSON ended by NUL.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

HANG = 60  # seconds, against what never ends

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--mute-audio", "--remote-debugging-pipe",
)  # fmt: skip

#: What DevTools calls keys that type nothing by themselves.
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "Backspace": ("Backspace", 8, ""),
    "F2": ("F2", 113, ""),
}
ALT, CTRL, META, SHIFT = 1, 2, 4, 8


def find_chromium() -> str | None:
    """Where a Chromium is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """The browser. profile: an empty folder."""

    def __init__(self, profile: Path, language: str = "en-US") -> None:
        path = find_chromium()
        assert path is not None
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # Out of the way first: either may be 3 or 4 itself.
        read, write = (fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10) for file in (to_read, to_write))
        arguments = [path, *FLAGS, f"--user-data-dir={profile}", f"--lang={language}", f"--accept-lang={language}"]
        nothing = [(os.POSIX_SPAWN_OPEN, file, os.devnull, os.O_RDWR, 0) for file in range(3)]
        pipes = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4)]
        self._process = os.posix_spawn(path, [*arguments, "about:blank"], os.environ, file_actions=[*nothing, *pipes])
        for file in (to_read, to_write, read, write):
            os.close(file)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._number = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        while read := os.read(self._from, 1 << 16):
            *whole, rest = (rest + read).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.heard(message["method"], message["params"])

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result."""
        with self._lock:
            self._number += 1
            number = self._number
            answer = self._answers[number] = queue.Queue()
            command = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
            data = json.dumps(command).encode() + b"\0"
            while data:
                data = data[os.write(self._to, data) :]
        found = answer.get(timeout=HANG + 15)
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        result: dict[str, Any] = found["result"]
        return result

    def open(
        self, url: str, width: int = 1280, height: int = 800, language: str | None = None, beside: Page | None = None
    ) -> Page:
        """A page with storage of its own, or with that of another page."""
        context = beside.context if beside else self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        if language is not None:
            page.call("Emulation.setUserAgentOverride", userAgent="Chromium", acceptLanguage=language)
        page.go(url)
        return page

    def close(self) -> None:
        self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._to)


class Page:
    """A page: what it asked for, said and complained of, and what a person does with it."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self._browser, self._session, self.context = browser, session, context
        self.requests: list[str] = []  # addresses
        self.problems: list[str] = []  # exceptions, errors logged, violations of the policy
        self._loaded = threading.Event()

    def heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:2000])
        elif (
            method == "Log.entryAdded"
            and params["entry"]["level"] == "error"
            and params["entry"]["source"] != "network"
        ):
            self.problems.append(params["entry"]["text"])
        elif method == "Audits.issueAdded" and "ContentSecurityPolicy" in params["issue"]["code"]:
            self.problems.append(json.dumps(params["issue"])[:2000])
        elif method == "Page.loadEventFired":
            self._loaded.set()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        self._loaded.clear()
        self.call("Page.navigate", url=url)
        assert self._loaded.wait(HANG)

    def to_front(self) -> None:
        """Have it seen: pages behind others do not paint."""
        self.call("Page.bringToFront")

    def reload(self) -> None:
        self._loaded.clear()
        self.call("Page.reload")
        assert self._loaded.wait(HANG)

    def size(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def media(self, **features: str) -> None:
        """CSS's media features, for instance `prefers_color_scheme="dark"`."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise. The page's policy holds for it too."""
        found = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in found:
            raise AssertionError(f"{script}\n{json.dumps(found['exceptionDetails'])[:2000]}")
        return found["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until an expression is true; its value."""
        script = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {HANG * 1000};
            const look = () => {{
                const value = (() => {{ try {{ return {condition}; }} catch {{ return undefined; }} }})();
                if (value) resolve(value);
                else if (performance.now() > end) reject(new Error("this never came true"));
                else setTimeout(look, 15);
            }};
            look();
        }})"""
        return self.run(script)

    def wait_for(self, selector: str, text: str = "") -> None:
        """Wait until a visible element has that text in it."""
        self.wait(
            f"[...document.querySelectorAll({json.dumps(selector)})].some((found) => found.checkVisibility() && "
            f"(found.innerText + (found.value ?? '')).includes({json.dumps(text)}))"
        )

    def text(self, selector: str) -> str:
        """The text shown in the last element of a kind; "" without one."""
        return str(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.innerText ?? ''"))

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str, index: int = -1) -> None:
        """Press the mouse where an element is; the last of its kind."""
        x, y = self.run(
            f"(() => {{ const found = [...document.querySelectorAll({json.dumps(selector)})]"
            f".filter((one) => one.checkVisibility()).at({index}); found.scrollIntoView({{block: 'nearest'}});"
            " const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def compose(self, text: str) -> None:
        """Have an input method compose a text that is not yet chosen; `type` chooses one."""
        self.call("Input.imeSetComposition", text=text, selectionStart=len(text), selectionEnd=len(text))

    def press(self, key: str, modifiers: int = 0, code: int | None = None) -> None:
        name, number, typed = KEYS.get(key, (key, ord(key[0].upper()), key))
        number = number if code is None else code
        common: dict[str, Any] = {"key": name, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        if typed and code is None and not modifiers & (CTRL | META | ALT):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=typed, **common)
        else:
            self.call("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def give_files(self, selector: str, *paths: Path) -> None:
        """Choose files for a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, paths)))

    def downloads_to(self, folder: Path) -> None:
        self._browser.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )

    def screenshot(self, path: Path | str) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self.context)
