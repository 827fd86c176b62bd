"""How a picture was made, as the one text that other programs read, by Automatic1111's rules."""

import json
from collections.abc import Mapping
from typing import Final

# Their names, in their order, of what a file of ours records.
PARAMETER_NAMES: Final[Mapping[str, str]] = {
    "steps": "Steps",
    "true_cfg_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model",
    "strength": "Denoising strength",
    "software": "Version",
}
SPECIAL: Final = frozenset(",:\n")


def write_parameters(record: Mapping[str, str], size: tuple[int, int]) -> str:
    """Return the text: the prompt, the negative prompt, and a last line of `name: value` pairs.

    `record` is what tasks record in a file, `size` is (width, height) in pixels. A value with a
    comma, a colon or a line break is a JSON string, as there.
    """
    facts = {**record, "size": f"{size[0]}x{size[1]}"}
    pairs = [
        f"{word}: {_escape(facts[name])}" for name, word in PARAMETER_NAMES.items() if name in facts
    ]
    lines = [record.get("prompt", "")]
    if negative := record.get("negative_prompt", "").strip():
        lines.append(f"Negative prompt: {negative}")
    return "\n".join([*lines, ", ".join(pairs)])


def _escape(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if SPECIAL & set(value) else value
