"""openai-python against a door at which nobody may wait: a 429 is an error, or is tried again."""

import sys

import openai

URL, KEY = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)

client.post("/../run", body={"input": {"prompt": "steps=30 pause=0.1"}}, cast_to=object)
try:
    client.images.generate(prompt="a fox")
except openai.RateLimitError as error:
    assert error.code == "rate_limit_exceeded"
    assert error.response.headers["x-should-retry"] == "true"
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
else:
    raise AssertionError("a second job was accepted")

made = client.with_options(max_retries=5).images.generate(prompt="a fox")
assert made.data is not None
assert made.data[0].b64_json
rows = client.get("/../metrics", cast_to=str).splitlines()
refused = next(row for row in rows if row.startswith('worker_jobs_total{end="refused"}'))
assert int(refused.rpartition(" ")[2]) >= 2, "it was accepted at a later try"
