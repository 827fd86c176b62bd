#!/usr/bin/env bash
# Prepare the bundle of MODEL (one name, or several with commas) into the image, for the baked target.
#   builder/bake.sh MODELS DIRECTORY        HF_TOKEN may come as a BuildKit secret of that name
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 2 ] && [ -n "$1" ] && [ -n "$2" ] || { echo "bake.sh: give the model or models and a directory" >&2; exit 1; }
secret=/run/secrets/HF_TOKEN
if [ -s "$secret" ]; then
  HF_TOKEN=$(cat "$secret")
  export HF_TOKEN
fi
IFS=, read -ra models <<<"$1"
for model in "${models[@]}"; do
  MODEL_DIR=$2 .venv/bin/python -m worker prepare "$model"
done
