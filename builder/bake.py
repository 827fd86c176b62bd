"""Prepare models and write each one's complete bundle as a folder below TARGET.

    python builder/bake.py MODELS TARGET      MODELS as in the variable MODEL

Models that publish the same text encoder or VAE share its files as hard links.
"""

import os
import shutil
import sys
from pathlib import Path

from worker import boot, log, settings
from worker.bundle import layout
from worker.families.catalogue import CATALOGUE
from worker.weights import sources


def bake(models: str, target: Path) -> list[Path]:
    """Prepare `models` in `target` and return the folder of each; raises WorkerError."""
    work = target / ".work"
    chosen = settings.read(instead={"MODEL": models, "MODEL_DIR": str(work)})
    log.configure(chosen.log_level)
    specs = CATALOGUE.resolve(chosen.model, chosen, has_gpu=False)
    folders = []
    for spec, prepared in zip(specs, boot.prepare(chosen), strict=True):
        folder = target / sources.make_place(spec)
        for name, path in layout.list_files(layout.verify(prepared, "full")).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, folder / name)
        folders.append(folder)
    shutil.rmtree(work)
    return folders


if __name__ == "__main__":
    for baked in bake(sys.argv[1], Path(sys.argv[2])):
        print(baked)
