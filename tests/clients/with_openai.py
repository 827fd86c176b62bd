"""openai-python against the door at the address given: generate, edit, stream, errors, retries."""

import base64
import io
import sys

import openai

URL, KEY = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=2)


def start_of(text: str | None) -> bytes:
    """Return the first bytes of a picture in base64."""
    return base64.b64decode(text or "")[:8]


PNG = b"\x89PNG\r\n\x1a\n"

models = client.models.list().data
assert [model.id for model in models] == ["standin"]
assert client.models.retrieve("standin").owned_by == "tests"

made = client.images.generate(
    model="gpt-image-1", prompt="a fox", n=2, size="64x64", quality="high", extra_body={"seed": 7}
)
assert made.data is not None
assert [start_of(one.b64_json) for one in made.data] == [PNG, PNG]
assert made.model_extra is not None
assert made.model_extra["worker"]["seeds"] == [7, 8]
assert made.size == "64x64"

picture = base64.b64decode(made.data[0].b64_json or "")
for files in (io.BytesIO(picture), [io.BytesIO(picture), ("b.png", picture, "image/png")]):
    edited = client.images.edit(
        image=files,
        prompt="a hare",
        n=1,
        size="auto",
        extra_body={"seed": 9, "lightning": False},
    )
    assert edited.data is not None
    assert start_of(edited.data[0].b64_json) == PNG
    assert edited.model_extra is not None
    assert (edited.model_extra["worker"]["task"], edited.model_extra["worker"]["seed"]) == (
        "edit",
        9,
    )

kinds, pictures, partial = [], [], []
with client.images.generate(prompt="a fox", n=2, stream=True, partial_images=2) as events:
    for event in events:
        assert start_of(event.b64_json) == PNG
        if event.type == "image_generation.partial_image":
            partial.append(event.partial_image_index)
            continue
        kinds.append(event.type)
        pictures.append(event.b64_json)
        assert event.usage.total_tokens == 0
assert kinds == ["image_generation.completed"] * 2
assert len(set(pictures)) == 2
assert partial[-2:] == [0, 1]
with client.images.edit(image=io.BytesIO(picture), prompt="x", stream=True) as changes:
    assert [change.type for change in changes] == ["image_edit.completed"]

try:
    client.images.generate(prompt="x", size="3x3")
except openai.BadRequestError as error:
    assert (error.code, error.param) == ("invalid_input", "size")
else:
    raise AssertionError("a size of 3x3 was accepted")
try:
    client.images.generate(prompt="x", model="flux")
except openai.NotFoundError as error:
    assert error.code == "model_not_found"
else:
    raise AssertionError("a model that is not served was accepted")

before = client.get("/../metrics", cast_to=str)
try:
    client.images.generate(prompt="nan")
except openai.InternalServerError as error:
    assert error.code == "bad_picture"
    assert error.response.headers["x-should-retry"] == "false"
else:
    raise AssertionError("a picture that is not one was accepted")
after = client.get("/../metrics", cast_to=str)


def failures(page: str) -> int:
    """Return how many jobs had no picture."""
    rows = [line for line in page.splitlines() if line.startswith("worker_failures_total")]
    return sum(int(line.rpartition(" ")[2]) for line in rows if "BAD_PICTURE" in line)


assert failures(after) == failures(before) + 1, "what fails again is not made again"

try:
    openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong-wrong-wrong").models.list()
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"
else:
    raise AssertionError("a wrong key was accepted")
