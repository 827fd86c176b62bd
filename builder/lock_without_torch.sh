#!/usr/bin/env bash
# Print a lock (from standard input) without torch, torchvision and the CUDA packages of that torch.
set -euo pipefail
awk '
  /^[A-Za-z0-9]/ { keep = $0 !~ /^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ }
  /^#/ { keep = 1 }
  keep
'
