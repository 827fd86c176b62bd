# syntax=docker/dockerfile:1
# The worker's image. Targets: slim (default; weights come from the volume, RunPod's model cache or the
# hub) and baked (a prepared bundle inside). builder/*.sh do all the work and run without Docker.
# Build it with ./build.sh, check it without Docker by `make image-check`.
ARG DEBIAN=bookworm

FROM debian:${DEBIAN}-slim AS base
ENV LANG=C.UTF-8 \
    PATH=/app/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /app

COPY builder/system.sh builder/
RUN bash builder/system.sh

# The dependencies, most of the image: rebuilt only when a lock or the torch build changes. Bytecode is
# compiled here, because a worker that compiles it at its first import would do so in every cold start.
# CUDA is the lock: cu128 for drivers from 570 on, cu130 for those from 580 on.
COPY builder/venv.sh builder/lock_without_torch.sh \
     builder/requirements-uv.lock builder/requirements-cu128.lock builder/requirements-cu130.lock builder/
ARG CUDA=cu128
ARG TORCH_INDEX_URL="" TORCH_VERSION="" TORCHVISION_VERSION=""
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 bash builder/venv.sh --no-project

# Endpoints may override every line. The linter mistakes TOKENIZERS_PARALLELISM for a secret.
#   NVIDIA_*                  this base is not NVIDIA's, so the container runtime must know what to mount
#   RUNPOD_LOG_LEVEL          the SDK's default, DEBUG, logs whole results, pictures included
#   RUNPOD_MIN_DISK_PERCENT   the SDK's default, 10, stops a worker whose disk is full of its own weights
# hadolint ignore=DL3064
ENV PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TOKENIZERS_PARALLELISM=false \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    RUNPOD_LOG_LEVEL=INFO \
    RUNPOD_MIN_DISK_PERCENT=1

COPY checkpoints checkpoints
COPY pyproject.toml handler.py test_input.json ./
COPY builder/project.sh builder/
COPY src src
RUN bash builder/project.sh && python -m compileall -q src handler.py

# Python is PID 1: RunPod's signals reach it, and no shell keeps pinging after it has died.
CMD ["python", "-u", "handler.py"]

FROM base AS baked
COPY builder/bake.sh builder/bake.py builder/
ARG MODEL=qwen-image-edit-2511 PRECISION_MODE=4bit LIGHTNING_STEPS=8
ENV MODEL=${MODEL} PRECISION_MODE=${PRECISION_MODE} LIGHTNING_STEPS=${LIGHTNING_STEPS}
RUN --mount=type=secret,id=HF_TOKEN,required=false bash builder/bake.sh "$MODEL" /app/models

FROM base AS slim
