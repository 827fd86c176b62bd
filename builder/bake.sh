#!/usr/bin/env bash
# Prepare the bundles of MODELS (comma-separated names) in TARGET, for the image's target baked.
#   builder/bake.sh MODELS TARGET        HF_TOKEN may be a BuildKit secret of that name
# VENV names another environment than .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 2 ] && [ -n "$1" ] && [ -n "$2" ] || { echo "bake.sh: give the models and a directory" >&2; exit 1; }
secret=/run/secrets/HF_TOKEN
if [ -s "$secret" ]; then
  HF_TOKEN=$(cat "$secret")
  export HF_TOKEN
fi
exec "${VENV:-.venv}/bin/python" builder/bake.py "$1" "$2"
