"""What op=capabilities answers: the models served here, the limits and the input's fields."""

from collections.abc import Sequence
from typing import Any

from worker.edge.fields import table
from worker.edge.reply import worker_version
from worker.families import Served
from worker.settings import Settings


def capabilities(served: Sequence[Served], settings: Settings) -> dict[str, Any]:
    """Return what callers may ask of this worker: plain JSON, the same for the worker's whole life.

    Sizes are pixels; `steps` are the base schedule's default, `lightning_steps` the counts held.
    """
    return {
        "models": [
            {
                "id": model.id,
                "repository": model.repository,
                "revision": model.revision,
                "precision": model.precision,
                "licence": model.licence,
                "tasks": list(model.tasks),
                "steps": model.steps,
                "true_cfg_scale": model.true_cfg_scale,
                "negative_prompt": model.negative_prompt,
                "lightning_steps": list(model.lightning_steps),
                "area": model.area,
                "max_pixels": model.max_pixels,
                "max_images": min(model.max_references, settings.max_input_images),
                "sizes": {ratio: list(size) for ratio, size in model.sizes.items()},
            }
            for model in served
        ],
        "input": [
            {
                "field": row.name,
                "aliases": list(row.aliases),
                "accepts": row.accepts,
                "default": row.default,
            }
            for row in table()
        ],
        "limits": {
            "max_images_per_request": settings.max_images_per_request,
            "max_image_bytes": settings.max_image_bytes,
            "max_reply_bytes": settings.max_reply_bytes,
        },
        "worker_version": worker_version(),
    }
