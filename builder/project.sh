#!/usr/bin/env bash
# Install the project itself into .venv/ (or the folder that VENV names), in place, which provides its
# version and `python -m worker`.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
