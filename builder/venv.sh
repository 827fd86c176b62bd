#!/usr/bin/env bash
# Make .venv/ in the project's root from the locks: uv by pip, then everything else by uv, with hashes.
#   builder/venv.sh [--dev | --no-project]
#     --dev         also the tools of the tests and linters, and what the tests compare with, whose
#                   own torch is not asked for
#     --no-project  the dependencies only: an image layer that changes of code do not touch
# CUDA names the lock: cu128 (default) or cu130. VENV names another folder than .venv. PYTHON names
# the interpreter (3.11 or newer; default python3). TORCH_INDEX_URL, TORCH_VERSION and
# TORCHVISION_VERSION, given together, install that build of torch instead of the locked one.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "venv.sh: $*" >&2
  exit 1
}

dev='' project=yes
case "${1:-}" in
  '') ;;
  --dev) dev=yes ;;
  --no-project) project='' ;;
  *) fail "unknown argument $1 (known: --dev, --no-project)" ;;
esac
[ $# -le 1 ] || fail "one argument at most"
if [ -n "${TORCH_INDEX_URL:-}${TORCH_VERSION:-}${TORCHVISION_VERSION:-}" ]; then
  [ -n "${TORCH_INDEX_URL:-}" ] && [ -n "${TORCH_VERSION:-}" ] && [ -n "${TORCHVISION_VERSION:-}" ] ||
    fail "TORCH_INDEX_URL, TORCH_VERSION and TORCHVISION_VERSION belong together: give all or none"
fi

cuda=${CUDA:-cu128} venv=${VENV:-.venv} python=${PYTHON:-python3}
lock=builder/requirements-$cuda.lock
case "$cuda" in cu128 | cu130) ;; *) fail "unknown CUDA=$cuda (known: cu128, cu130)" ;; esac

command -v "$python" >/dev/null || fail "$python is not installed: install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=..."

# A broken venv (an interrupted run, a Python that was removed) is recreated.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  if ! "$python" -m venv --clear "$venv" >/dev/null 2>&1; then
    # Debian ships python3 without ensurepip; its package is the only one needed from the system.
    minor=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
    command -v apt-get >/dev/null || fail "this Python cannot make a venv: install its ensurepip"
    [ "$(id -u)" = 0 ] || fail "this Python has no ensurepip: install python$minor-venv, then run this again"
    apt-get update -q
    apt-get install -qy --no-install-recommends "python$minor-venv" ||
      apt-get install -qy --no-install-recommends python3-venv
    "$python" -m venv --clear "$venv"
  fi
fi

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r builder/requirements-uv.lock
uv() { "$venv/bin/uv" pip "$1" --quiet --python "$venv/bin/python" "${@:2}"; }
if [ -n "${TORCH_INDEX_URL:-}" ]; then
  # The lock is complete, so that without torch and its CUDA packages nothing is left to resolve.
  rest=$(mktemp)
  trap 'rm -f "$rest"' EXIT
  bash builder/lock_without_torch.sh <"$lock" >"$rest"
  uv install --require-hashes --no-deps -r "$rest"
  uv install --index-url "$TORCH_INDEX_URL" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"
  [ -z "$dev" ] || uv install --require-hashes -r builder/requirements-dev.lock
  [ -z "$dev" ] || uv install --require-hashes --no-deps -r builder/requirements-parity.lock
else
  # Exactly what the locks say: the CUDA packages of two torch builds write to the same folders, so
  # those of another build go before the locked ones come.
  uv sync --require-hashes "$lock" builder/requirements-uv.lock ${dev:+builder/requirements-dev.lock builder/requirements-parity.lock}
fi
[ -z "$project" ] || VENV=$venv bash builder/project.sh
