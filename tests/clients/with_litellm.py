"""LiteLLM against the door at the address given, as OpenAI's and as vLLM's."""

import base64
import io
import sys

import litellm

URL, KEY = sys.argv[1:3]
place = {"api_base": f"{URL}/v1", "api_key": KEY}

for model in ("openai/standin", "openai/gpt-image-1"):
    made = litellm.image_generation(model=model, prompt="a fox", n=1, size="64x64", **place)
    picture = base64.b64decode(made.data[0].b64_json)
    assert picture.startswith(b"\x89PNG")
edited = litellm.image_edit(
    model="openai/standin", image=[io.BytesIO(picture)], prompt="a hare", **place
)
assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
try:
    litellm.image_generation(model="openai/standin", prompt="x", size="3x3", **place)
except litellm.BadRequestError as error:
    assert "size" in str(error)
else:
    raise AssertionError("a size of 3x3 was accepted")
