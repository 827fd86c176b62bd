"""The worker's start: boot, then serve jobs. Nothing heavy is imported before main().

A job is {"input": {"prompt": "a cat with a hat"}}; next to the prompt it may have, for example,
    "images": ["https://..."]                    up to three pictures to edit, or base64
    "size": "1024x1024", "num_images": 2, "seed": 42, "num_inference_steps": 8
    "output_format": "webp", "response_format": "url"
    "op": "capabilities"                         instead of a prompt: what this worker can do
docs/reference.md has every field, reply and error.
"""

import sys


def main() -> int:
    """Read the environment, boot and serve; return the exit code."""
    from worker import system  # noqa: PLC0415 - importing this file must cost nothing

    if fault := system.find_fault():
        print(f"{fault.found}: {fault.change}", file=sys.stderr)  # noqa: T201 - no log yet
        return 1
    from worker import boot, entrance  # noqa: PLC0415 - the same
    from worker.doors import start  # noqa: PLC0415

    return start.run(entrance.open_door, boot.boot)


if __name__ == "__main__":
    sys.exit(main())
