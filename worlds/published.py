"""Two published models as callers see them, for requests to be judged against."""

from dataclasses import replace

from worker.families import Served
from worker.families.qwen_image.models import NEGATIVE_2512, PUBLISHED_SIZES

IMAGE = Served(
    id="qwen-image-2512",
    repository="Qwen/Qwen-Image-2512",
    revision="0123456789abcdef0123456789abcdef01234567",
    precision="4bit",
    licence="apache-2.0",
    tasks=("text-to-image",),
    steps=50,
    true_cfg_scale=4.0,
    negative_prompt=NEGATIVE_2512,
    lightning_steps=(8, 4),
    area=1024 * 1024,
    max_pixels=2048 * 2048,
    max_references=0,
    sizes=PUBLISHED_SIZES,
)
EDIT = replace(
    IMAGE,
    id="qwen-image-edit-2511",
    repository="Qwen/Qwen-Image-Edit-2511",
    negative_prompt=" ",
    tasks=("edit",),
    steps=40,
    max_references=3,
)
