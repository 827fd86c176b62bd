"""Fuzz one target, guided by coverage: `python -m fuzz.campaign TARGET SECONDS [FOLDER]`.

Needs atheris, which `make fuzz` installs. FOLDER keeps the inputs found interesting between runs;
an input that breaks a target is left there as crash-*, slow-unit-* or oom-*.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["worker", "PIL", "yarl", "ipaddress", "json"]):
    from fuzz.targets import EXAMPLES, TARGETS, sound

LONGEST = {"parsing": 400, "decoding": 4000, "addressing": 300}


def _mutate(data: bytes, max_size: int, seed: int) -> bytes:
    mutated: bytes = atheris.Mutate(data, max_size)
    return sound(mutated)[:max_size] if seed % 4 else mutated


def main(target: str, seconds: str, folder: str | None = None) -> None:
    """Fuzz for so many seconds; ends the process with libFuzzer's status, 0 when nothing broke."""
    kept = Path(folder or tempfile.mkdtemp(prefix="fuzz-")) / target
    kept.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(EXAMPLES[target]):
        (kept / f"example-{index}").write_bytes(data)
    options = [
        sys.argv[0],
        str(kept),
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST[target]}",
        f"-artifact_prefix={kept.parent}/{target}-",
        "-timeout=5",  # seconds that one input may take
        "-rss_limit_mb=1500",
        "-print_final_stats=1",
    ]
    mutator = {"custom_mutator": _mutate} if target == "decoding" else {}
    atheris.Setup(options, TARGETS[target], **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
