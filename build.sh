#!/usr/bin/env bash
# Build the worker's image with Docker BuildKit, for linux/amd64. See --help.
set -euo pipefail
python=${PYTHON:-python3}
command -v "$python" >/dev/null || {
  echo "build: $python is not installed; name a Python from 3.9 on with PYTHON=..." >&2
  exit 2
}
exec "$python" "$(dirname "$0")/builder/image.py" "$@"
