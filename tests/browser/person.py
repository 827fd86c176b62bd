"""What a person does on the page, and what they would notice: one of them per page."""

import base64
import json
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Request, expect

WAIT_MS = 60_000


class Person:
    """Someone on the page of one door, who notes what it asks for and complains of."""

    def __init__(self, context: BrowserContext, url: str, axe: str) -> None:
        self.page = context.new_page()
        self.url = url
        self._axe = axe
        self._asked: list[str] = []
        self._said: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.page.on("request", self._note)
        self.page.on("console", lambda message: self._said.append(message.text))
        self.page.on("pageerror", lambda error: self._said.append(str(error)))
        self.page.goto(url)

    def _note(self, request: Request) -> None:
        self._asked.append(request.url)
        if request.method == "POST":
            self.sent.append(json.loads(request.post_data or "{}")["input"])

    def wait(self) -> None:
        """Wait until jobs are taken."""
        expect(self.page.locator("#health")).to_contain_text("ready", timeout=WAIT_MS)

    def drop(self, target: str, data: bytes, name: str = "a.png") -> None:
        """Drop a file on an element."""
        text = base64.b64encode(data).decode()
        transfer = self.page.evaluate_handle(
            """([text, name]) => {
              const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
              const transfer = new DataTransfer();
              const type = `image/${name.split(".").at(-1)}`;
              transfer.items.add(new File([bytes], name, { type }));
              return transfer;
            }""",
            [text, name],
        )
        self.page.dispatch_event(target, "drop", {"dataTransfer": transfer})

    def make(self, prompt: str, kind: str = "img") -> bytes:
        """Make something by the keyboard, and return its file."""
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Control+Enter")
        expect(self.page.locator("#state")).to_contain_text("done in", timeout=WAIT_MS)
        source = self.page.get_attribute(f"#result {kind}", "src") or ""
        return base64.b64decode(source.partition(",")[2])

    def check_accessibility(self) -> None:
        """Find nothing that keeps people out; without npm there is no axe."""
        if not self._axe:
            return
        self.page.evaluate(Path(self._axe).read_text(encoding="utf-8"))
        found: Any = self.page.evaluate("() => axe.run()")
        assert found["violations"] == [], [
            (one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]
        ]

    def leave(self) -> None:
        """Close the page, which complained of nothing and asked nothing of another origin."""
        assert self._said == [], self._said
        own = (self.url, "data:", "blob:")
        assert all(url.startswith(own) for url in self._asked), self._asked
        self.page.close()
