"""RunPod's own client against the door at the address given: run, runsync, status, cancel."""

import base64
import sys

import runpod

URL, KEY = sys.argv[1:3]
runpod.endpoint_url_base = f"{URL}/v2"
runpod.api_key = KEY
endpoint = runpod.Endpoint("any")

output = endpoint.run_sync({"input": {"prompt": "a fox", "seed": 7}}, timeout=60)
assert output["seed"] == 7
assert base64.b64decode(output["images"][0]["base64"]).startswith(b"\x89PNG")

job = endpoint.run({"input": {"prompt": "a hare", "seed": 8}})
assert job.output(timeout=60)["seed"] == 8
assert job.status() == "COMPLETED"

failed = endpoint.run({"input": {"prompt": "a hare", "width": 3}})
failed.output(timeout=60)
assert failed.status() == "FAILED"

long = endpoint.run({"input": {"prompt": "steps=100 pause=0.2"}})
long.cancel(timeout=30)
assert long.status() == "CANCELLED"

health = endpoint.health()
assert health["workers"]["ready"] == 1
assert health["jobs"]["completed"] >= 2
