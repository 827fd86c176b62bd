"""The LoRAs that the operator gave names: those of LORAS, and the files of LORA_DIR."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.loras.origin import HubFile, read_hub_file
from worker.setting_values import LORA_NAME
from worker.settings import Settings

ENDING: Final = ".safetensors"


def list_names(settings: Settings) -> tuple[str, ...]:
    """Name the LoRAs that callers may name, those of LORAS first; none where names are refused."""
    if "names" not in settings.lora_kinds:
        return ()
    return tuple(dict.fromkeys((*(name for name, _ in settings.loras), *_list_files(settings))))


def find_place(name: str, settings: Settings) -> Path | HubFile | None:
    """Return where a named LoRA is; None when no LoRA has that name."""
    words = dict(settings.loras)
    if name in words:
        return read_hub_file(words[name])
    return None if settings.lora_dir is None else _find_file(name, settings.lora_dir)


def _list_files(settings: Settings) -> Iterator[str]:
    folder = settings.lora_dir
    if folder is None:
        return
    try:
        entries = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if _find_file(name := entry.removesuffix(ENDING), folder) is not None:
            yield name


def _find_file(name: str, folder: Path) -> Path | None:
    """Return `folder`/`name`.safetensors, or the only such file of `folder`/`name`.

    None where there is none, and for a link that leads out of the folder.
    """
    if not LORA_NAME.fullmatch(name):
        return None
    single = folder / f"{name}{ENDING}"
    try:
        inner = [] if single.exists() else sorted((folder / name).glob(f"*{ENDING}"))
        path = inner[0] if len(inner) == 1 else single
        is_inside = path.resolve().is_relative_to(folder.resolve())
        return path if is_inside and path.is_file() else None
    except (OSError, RuntimeError):  # a folder that may not be read, a link to itself
        return None
