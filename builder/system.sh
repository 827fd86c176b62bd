#!/usr/bin/env bash
# Install what the image needs from Debian or Ubuntu: Python with venv, certificates for https, gcc.
# CUDA's libraries are in torch's wheels and the driver is the host's, so no CUDA base is needed.
# Triton builds a small extension with a C compiler and Python's headers before it runs any kernel.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "system.sh: run this as root" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qqy --no-install-recommends \
  ca-certificates gcc libc6-dev python3 python3-dev python3-venv >/dev/null
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
