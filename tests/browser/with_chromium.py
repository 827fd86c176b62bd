"""The playground in chromium: scenes, one after another, at the doors of the file that is given."""

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from person import WAIT_MS, Person
from playwright.sync_api import BrowserContext, expect, sync_playwright

GIVEN: dict[str, str] = json.loads(Path(sys.argv[1]).read_text())
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
PROMPT = "a fox, Füchse 狐"
SEED = "9007199254740991"


def make_foreign_png(data: bytes) -> bytes:
    """Return a PNG with nothing but another program's text in it."""
    text = (
        b"parameters\0a heron, at dawn\nNegative prompt: blur\nSteps: 12, Sampler: Euler, Seed: 77"
    )
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    place = data.index(b"IDAT") - 4
    return data[:33] + chunk + data[place:]


def play_text(person: Person) -> bytes:
    """A picture from text with a seed, then the same again, the same picture."""
    page = person.page
    page.fill("[name=seed]", SEED)
    page.check("#lock")
    first = person.make(PROMPT)
    assert first.startswith(b"\x89PNG")
    expect(page.locator("#gallery li")).to_have_count(1)
    expect(page.locator("[name=seed]")).to_have_value(SEED)
    expect(page.locator("#reply")).to_contain_text('"status": "COMPLETED"')
    person.check_accessibility()
    assert person.make(PROMPT) == first
    return first


def play_restoring(person: Person, first: bytes) -> None:
    """Settings from a dropped picture: of each format, and of another program."""
    page = person.page
    page.click("text=More settings")
    files = {"png": first}
    for form in ("jpeg", "webp"):
        page.select_option("[name=output_format]", form)
        files[form] = person.make(PROMPT)
    page.select_option("[name=output_format]", "")
    for form, data in files.items():
        page.fill("#prompt", "something else")
        page.fill("[name=seed]", "")
        person.drop("body", data, f"a.{form}")
        expect(page.locator("#prompt")).to_have_value(PROMPT)
        expect(page.locator("[name=seed]")).to_have_value(SEED)
        expect(page.locator("[role=radio][data-ratio='1:1']")).to_be_checked()
    person.drop("body", make_foreign_png(first))
    expect(page.locator("#prompt")).to_have_value("a heron, at dawn")
    expect(page.locator("[name=num_inference_steps]")).to_have_value("12")
    expect(page.locator("[name=negative_prompt]")).to_have_value("blur")
    page.click("text=More settings")


def play_edit(person: Person, first: bytes) -> None:
    """An edit of two dropped references in another order, and its entry of the gallery."""
    page = person.page
    person.drop("body", first)
    expect(page.locator("#state")).to_have_text("settings restored")
    person.drop("#references", first, "one.png")
    person.drop("#references", first, "two.png")
    expect(page.locator("#task")).to_have_value("edit")
    page.click("button[aria-label='earlier: two.png']")
    expect(page.locator("#sources li").first.locator("img")).to_have_attribute("alt", "two.png")
    page.click("button[aria-label='remove: one.png']")
    person.make("a hare")
    expect(page.locator("input[aria-label='Before and after']")).to_have_count(1)
    expect(page.locator("#reply")).to_contain_text('"task": "edit"')
    after, before = (page.locator("#result img").nth(place).bounding_box() for place in (0, 1))
    assert before == after, "they are compared where they lie"
    person.check_accessibility()
    page.click("button[aria-label='remove: two.png']")
    expect(page.locator("#task")).to_have_value("text-to-image")
    page.locator("#gallery button[aria-label='restore: a hare']").first.click()
    expect(page.locator("#task")).to_have_value("edit")
    expect(page.locator("#sources li")).to_have_count(1)
    count = page.locator("#gallery li").count()
    page.locator("#gallery button[aria-label^='delete']").first.click()
    expect(page.locator("#gallery li")).to_have_count(count - 1)


def read_mask(person: Person) -> list[int]:
    """Return the first, the middle and the last pixel of the mask that was sent."""
    found: list[int] = person.page.evaluate(
        """async (url) => {
          const image = new Image();
          image.src = url;
          await image.decode();
          const canvas = document.createElement("canvas");
          canvas.width = image.naturalWidth;
          canvas.height = image.naturalHeight;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
          return [0, data.length / 2 + canvas.width * 2, data.length - 4].map((one) => data[one]);
        }""",
        person.sent[-1]["mask"],
    )
    return found


def paint(person: Person) -> None:
    """Paint a stroke through the middle."""
    page = person.page
    page.locator("#brush").scroll_into_view_if_needed()
    box: Any = page.locator("#brush").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - box["width"] / 6, middle[1])
    page.mouse.down()
    page.mouse.move(*middle)
    page.mouse.move(middle[0] + box["width"] / 6, middle[1])
    page.mouse.up()


def play_mask(person: Person) -> None:
    """A part that is repainted: painted, undone, inverted; then from a file, and margins."""
    page = person.page
    page.select_option("#task", "inpaint")
    expect(page.locator("#painted")).to_be_visible()
    page.fill("#brush-size", "20")
    paint(person)
    page.click("#undo")
    expect(page.locator("#undo")).to_be_disabled()
    paint(person)
    page.fill("[name=strength]", "0.5")
    person.check_accessibility()
    person.make("a hat")
    expect(page.locator("#reply")).to_contain_text('"task": "inpaint"')
    assert read_mask(person) == [0, 255, 0]
    assert person.sent[-1]["strength"] == "0.5"
    page.click("#invert")
    person.make("a field")
    assert read_mask(person) == [255, 0, 255]
    page.select_option("#task", "outpaint")
    expect(page.locator("#mask")).to_be_hidden()
    page.click("[data-ratio='']")
    page.fill("[name='outpaint.left']", "64")
    page.fill("[name=strength]", "")
    person.make("a wide field")
    assert person.sent[-1]["outpaint"] == {"left": 64}
    expect(page.locator("#result img")).to_have_attribute("width", "128")
    page.select_option("#task", "text-to-image")
    expect(page.locator("[name='outpaint.left']")).to_have_count(0)


def play_faults(person: Person) -> None:
    """A cancel, an error, and the request for other programs."""
    page = person.page
    page.fill("#prompt", "steps=400 pause=0.05")
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#state")).to_contain_text("step", timeout=WAIT_MS)
    page.press("#prompt", "Escape")
    expect(page.locator("#state")).to_have_text("cancelled")
    person.make("after the cancel")
    page.fill("#prompt", "nan")
    page.click("#go")
    expect(page.locator("#problem")).to_contain_text("BAD_PICTURE", timeout=WAIT_MS)
    person.check_accessibility()
    page.click("text=Use it elsewhere")
    for name in ("curl", "Python", "JavaScript", "OpenAI"):
        page.click(f"text=Copy as {name}")
        expect(page.locator("#code")).to_contain_text("nan")
        expect(page.locator("#code")).to_contain_text(person.url)
        expect(page.locator("#code")).not_to_contain_text("WORKER_KEY")


def play_phone(person: Person) -> None:
    """A narrow screen in the dark."""
    page = person.page
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    person.check_accessibility()


def play_key(context: BrowserContext) -> None:
    """A door with a key asks for it, and only this tab keeps it."""
    person = Person(context, GIVEN["locked"], GIVEN["axe"])
    page = person.page
    page.fill("#key", GIVEN["key"])
    page.click("text=Use it in this tab")
    person.wait()
    person.make("with a key")
    assert page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    page.click("text=Use it elsewhere")
    page.click("text=Copy as curl")
    expect(page.locator("#code")).to_contain_text("$WORKER_KEY")
    expect(page.locator("#code")).not_to_contain_text(GIVEN["key"])
    page.close()  # what it said is that a request was refused, once


def play_endpoint(context: BrowserContext) -> None:
    """The same page for a queue endpoint, whose key no browser gets."""
    person = Person(context, GIVEN["endpoint"], GIVEN["axe"])
    page = person.page
    person.wait()
    assert person.make("from a queue").startswith(b"\x89PNG")
    page.fill("#prompt", "steps=400 pause=0.05")
    page.press("#prompt", "Control+Enter")
    expect(page.locator("#state")).to_contain_text("step", timeout=WAIT_MS)
    page.press("#prompt", "Escape")
    expect(page.locator("#state")).to_have_text("cancelled")
    page.click("text=Use it elsewhere")
    for name in ("curl", "Python", "JavaScript", "OpenAI"):
        page.click(f"text=Copy as {name}")
        expect(page.locator("#code")).to_contain_text(GIVEN["runpod"])
        expect(page.locator("#code")).to_contain_text("RUNPOD_API_KEY")
    assert GIVEN["runpod_key"] not in page.content()
    assert page.evaluate("() => sessionStorage.length + localStorage.length") == 0
    person.leave()


def play_speech(context: BrowserContext) -> None:
    """A model that speaks has a player, and none of the fields of pictures."""
    person = Person(context, GIVEN["speech"], GIVEN["axe"])
    page = person.page
    person.wait()
    page.select_option("#task", "speech")
    for hidden in ("#references", "#aspects", "#mask"):
        expect(page.locator(hidden)).to_be_hidden()
    served = page.evaluate(
        """async () => {
          const body = JSON.stringify({ input: { op: "capabilities" } });
          const headers = { "Content-Type": "application/json" };
          const response = await fetch("runsync", { method: "POST", body, headers });
          return (await response.json()).output.models[0];
        }"""
    )
    voices = page.locator("[name=voice] option").all_text_contents()
    assert voices[1:] == served.get("voices", [])
    assert person.make("hello", "audio").startswith(b"RIFF")
    length = page.evaluate(
        """async () => {
          const player = document.querySelector("#result audio");
          player.load();
          await new Promise((resolve) => { player.onloadedmetadata = resolve; });
          return player.duration;
        }"""
    )
    assert length == 0.5
    expect(page.locator("#gallery audio")).to_have_count(1)
    person.check_accessibility()
    page.locator("#gallery button[aria-label='restore: hello']").click()
    expect(page.locator("#task")).to_have_value("speech")
    person.leave()


def take_pictures(context: BrowserContext) -> None:
    """Take the pictures of the docs, wide and narrow, with the embedded models."""
    person = Person(context, GIVEN["model"], GIVEN["axe"])
    page = person.page
    person.wait()
    page.fill("[name=seed]", "42")
    page.check("#lock")
    star = person.make("a large yellow star on a purple background, on the right")
    person.drop("#references", star, "star.png")
    person.make("make the star green")
    page.fill("input[aria-label='Before and after']", "50")
    page.set_viewport_size({"width": 1200, "height": 760})
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.screenshot(path=f"{GIVEN['out']}/playground.png")
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=f"{GIVEN['out']}/playground-phone.png")
    person.leave()


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    somebody = Person(context, GIVEN["plain"], GIVEN["axe"])
    somebody.wait()
    made = play_text(somebody)
    play_restoring(somebody, made)
    play_edit(somebody, made)
    play_mask(somebody)
    play_faults(somebody)
    play_phone(somebody)
    somebody.leave()
    play_key(context)
    play_endpoint(context)
    play_speech(context)
    take_pictures(context)
    browser.close()
