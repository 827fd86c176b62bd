"""What op=capabilities returns: the models served here, the limits and the fields of inputs."""

from collections.abc import Sequence
from typing import Any

from worker.edge.reply import read_worker_version
from worker.loras.allowed import list_names
from worker.seam import Served
from worker.settings import Settings
from worker.tasks import registry


def list_capabilities(
    served: Sequence[Served], settings: Settings, most_bytes: int
) -> dict[str, Any]:
    """Return what callers may request of this worker: plain JSON.

    Only the names of LoRAs may change while it runs, as files come into LORA_DIR.

    A field that not every task has names those that have it; `schema` is JSON Schema.
    `most_bytes` is what a reply may have at the door that asks.
    """
    return {
        "models": [_describe_model(model, settings) for model in served],
        "input": [
            {
                "field": row.name,
                "aliases": list(row.aliases),
                "accepts": row.accepts,
                "default": row.default,
                "schema": registry.describe_value(row),
                **({"tasks": list(row.tasks)} if row.tasks else {}),
            }
            for row in registry.list_fields()
        ],
        "loras": {
            "sources": list(settings.lora_kinds),
            "names": list(list_names(settings)),
            "max_lora_bytes": settings.max_lora_bytes,
        },
        "limits": {
            "max_images_per_request": settings.max_images_per_request,
            "max_image_bytes": settings.max_image_bytes,
            "max_reply_bytes": most_bytes,
        },
        "worker_version": read_worker_version(),
    }


def _describe_model(model: Served, settings: Settings) -> dict[str, Any]:
    facts = {
        "id": model.id,
        "repository": model.repository,
        "revision": model.revision,
        "precision": model.precision,
        "licence": model.licence,
        "gated": model.is_gated,
        "tasks": list(model.tasks),
    }
    for offer in model.offers.values():
        facts |= offer.describe(settings)
    return facts
