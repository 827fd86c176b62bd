#!/usr/bin/env bash
# Make .venv/ at the project's root from the locks: uv by pip, then all the rest by uv, with hashes.
#   builder/venv.sh [--dev]      PYTHON names the interpreter (3.11 or newer)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
if ! [ -x .venv/bin/pip ]; then
  # Debian ships python3 without ensurepip; its package is the only thing that we ask the system for
  "$python" -m venv .venv 2>/dev/null || {
    apt-get update -q && apt-get install -qy --no-install-recommends python3-venv
    "$python" -m venv --clear .venv
  }
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
locks=(-r builder/requirements.lock)
[ "${1:-}" != --dev ] || locks+=(-r builder/requirements-dev.lock)
.venv/bin/uv pip install --quiet --require-hashes "${locks[@]}"
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
