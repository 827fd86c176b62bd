"""The playground in chromium, at the address given: what people do there, one after another.

Arguments: the door's address, that of a door with a key, its key, a folder for pictures, and axe's
file, which is left out where npm is missing.
"""

import base64
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

URL, LOCKED, KEY, OUT = sys.argv[1:5]
AXE = Path(sys.argv[5]) if len(sys.argv) > 5 else None
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
WAIT_MS = 60_000


def drop(page: Page, target: str, data: bytes, name: str = "a.png") -> None:
    """Drop a file on an element, as a person would."""
    text = base64.b64encode(data).decode()
    transfer = page.evaluate_handle(
        """([text, name]) => {
          const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type: "image/png" }));
          return transfer;
        }""",
        [text, name],
    )
    page.dispatch_event(target, "drop", {"dataTransfer": transfer})


def finish(page: Page, prompt: str) -> bytes:
    """Make a picture by the keyboard, and return it."""
    page.fill("#prompt", prompt)
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#state")).to_contain_text("done in", timeout=WAIT_MS)
    source = page.get_attribute("#result img", "src") or ""
    return base64.b64decode(source.partition(",")[2])


def check_accessibility(page: Page) -> None:
    """Find nothing that keeps people out."""
    if AXE is None:
        return
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found: Any = page.evaluate("() => axe.run()")
    assert found["violations"] == [], [
        (one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]
    ]


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(URL)
    expect(page.locator("#health")).to_contain_text("ready", timeout=WAIT_MS)

    # a picture from text, with a seed
    page.fill("[name=seed]", "9007199254740991")
    page.check("#lock")
    first = finish(page, "a fox, Füchse 狐")
    assert first.startswith(b"\x89PNG")
    expect(page.locator("#gallery li")).to_have_count(1)
    expect(page.locator("[name=seed]")).to_have_value("9007199254740991")
    expect(page.locator("#reply")).to_contain_text('"status": "COMPLETED"')
    page.screenshot(path=f"{OUT}/playground.png")
    check_accessibility(page)

    # the same once more: the same picture
    assert finish(page, "a fox, Füchse 狐") == first

    # settings from a dropped picture
    page.fill("#prompt", "something else")
    page.fill("[name=seed]", "")
    drop(page, "body", first)
    expect(page.locator("#prompt")).to_have_value("a fox, Füchse 狐")
    expect(page.locator("[name=seed]")).to_have_value("9007199254740991")

    # an edit of two dropped references, in another order
    drop(page, "#references", first, "one.png")
    drop(page, "#references", first, "two.png")
    expect(page.locator("#sources li")).to_have_count(2)
    page.click("button[aria-label='earlier: two.png']")
    expect(page.locator("#sources li").first.locator("img")).to_have_attribute("alt", "two.png")
    page.click("button[aria-label='remove: one.png']")
    finish(page, "a hare")
    expect(page.locator("input[aria-label='Before and after']")).to_have_count(1)
    expect(page.locator("#reply")).to_contain_text('"task": "edit"')
    page.screenshot(path=f"{OUT}/playground-edit.png")
    check_accessibility(page)
    page.click("button[aria-label='remove: two.png']")

    # a restored entry of the gallery, and one that is deleted
    page.locator("#gallery button[aria-label^='restore: a fox']").first.click()
    expect(page.locator("#prompt")).to_have_value("a fox, Füchse 狐")
    page.locator("#gallery button[aria-label^='delete']").first.click()
    expect(page.locator("#gallery li")).to_have_count(2)

    # a cancel
    page.fill("#prompt", "steps=400 pause=0.05")
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#state")).to_contain_text("step", timeout=WAIT_MS)
    page.press("#prompt", "Escape")
    expect(page.locator("#state")).to_have_text("cancelled")
    finish(page, "after the cancel")

    # an error
    page.fill("#prompt", "nan")
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("BAD_PICTURE", timeout=WAIT_MS)
    check_accessibility(page)

    # the request for other programs
    page.click("text=Use it elsewhere")
    for name in ("curl", "Python", "JavaScript", "OpenAI"):
        page.click(f"text=Copy as {name}")
        expect(page.locator("#code")).to_contain_text("nan")

    # a phone, in the dark
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    check_accessibility(page)
    page.screenshot(path=f"{OUT}/playground-phone.png")

    assert said == [], said
    assert all(url.startswith((URL, "data:", "blob:")) for url in asked), asked

    # a door with a key asks for it, and only this tab keeps it
    page = context.new_page()
    page.goto(LOCKED)
    page.fill("#key", KEY)
    page.click("text=Use it in this tab")
    expect(page.locator("#health")).to_contain_text("ready", timeout=WAIT_MS)
    finish(page, "with a key")
    assert page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    browser.close()
