"""The door: boot the worker, then serve RunPod's jobs. Nothing heavy is imported before main()."""

import sys


def main() -> int:
    """Read the environment, boot and serve; return the exit code."""
    from worker import boot, settings  # noqa: PLC0415 - importing this file must cost nothing
    from worker.errors import InvalidSettings  # noqa: PLC0415
    from worker.loop import guarded  # noqa: PLC0415

    try:
        chosen = settings.read()
    except InvalidSettings as error:
        return guarded.refuse(error)
    return guarded.run(chosen, boot.boot)


if __name__ == "__main__":
    sys.exit(main())
