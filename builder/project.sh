#!/usr/bin/env bash
# Install the project itself into .venv/, in place, which provides its version and `python -m worker`.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
