#!/usr/bin/env bash
# Make .venv/ in the project's root from the locks: uv by pip, then everything else by uv, with hashes.
#   builder/venv.sh [--dev | --no-project]
#     --dev         also the tools of the tests and linters
#     --no-project  the dependencies only: an image layer that changes of code do not touch
# PYTHON names the interpreter (3.11 or newer; default python3). TORCH_INDEX_URL, TORCH_VERSION and
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

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python is not installed: install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=..."

# A broken .venv (an interrupted run, a Python that was removed) is recreated.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  if ! "$python" -m venv --clear .venv >/dev/null 2>&1; then
    # Debian ships python3 without ensurepip; its package is the only one needed from the system.
    minor=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
    command -v apt-get >/dev/null || fail "this Python cannot make a venv: install its ensurepip"
    [ "$(id -u)" = 0 ] || fail "this Python has no ensurepip: install python$minor-venv, then run this again"
    apt-get update -q
    apt-get install -qy --no-install-recommends "python$minor-venv" ||
      apt-get install -qy --no-install-recommends python3-venv
    "$python" -m venv --clear .venv
  fi
fi

.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r builder/requirements-uv.lock
uv=(.venv/bin/uv pip install --quiet --python .venv/bin/python)
if [ -n "${TORCH_INDEX_URL:-}" ]; then
  # The lock is complete, so that without torch and its CUDA packages nothing is left to resolve.
  rest=$(mktemp)
  trap 'rm -f "$rest"' EXIT
  bash builder/lock_without_torch.sh <builder/requirements.lock >"$rest"
  "${uv[@]}" --require-hashes --no-deps -r "$rest"
  "${uv[@]}" --index-url "$TORCH_INDEX_URL" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"
else
  "${uv[@]}" --require-hashes -r builder/requirements.lock
fi
[ -z "$dev" ] || "${uv[@]}" --require-hashes -r builder/requirements-dev.lock
[ -z "$project" ] || bash builder/project.sh
