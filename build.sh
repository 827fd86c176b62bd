#!/usr/bin/env bash
# Build the worker's image with Docker BuildKit, for linux/amd64. See --help.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  cat <<'TEXT'
Usage: ./build.sh --tag NAME[:TAG] [--tag ...] [options]

  --tag NAME[:TAG]       the image's name; may be given several times
  --target slim|baked    slim: no weights inside (default); baked: a prepared bundle inside
  --cuda cu128|cu130     which lock: torch for CUDA 12.8, driver 570 or newer (default); for CUDA 13.0,
                         driver 580 or newer
  --push                 push to the tag's registry instead of keeping the image locally
  --no-cache             build every layer again
  --dry-run              print the command and build nothing
  --help                 this text

baked only:
  --model NAME[,NAME]    what to bake (default: qwen-image-edit-2511)
  --precision MODE       4bit, 8bit or bf16 (default: 4bit)
  --lightning-steps N    8, 4 or 8,4: the LoRAs to bake (default: 8)

another torch build than a lock's (all three together):
  --torch VERSION        such as 2.11.0
  --torchvision VERSION  the version made for it
  --torch-index URL      the package index that has that build

HF_TOKEN in the environment is passed to the baked build as a BuildKit secret, and is in no layer.
TEXT
}

fail() {
  echo "build.sh: $*" >&2
  echo "Try ./build.sh --help" >&2
  exit 2
}

check_value() { # check_value OPTION WORDS-LEFT VALUE: fail unless an option has a value
  if [ "$2" -lt 2 ] || [ -z "$3" ] || [ "${3#-}" != "$3" ]; then
    fail "$1 needs a value"
  fi
}

target=slim cuda='' tags=() push='' cache=yes dry='' model='' precision='' lightning='' torch='' vision='' index=''
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --push) push=yes; shift ;;
    --no-cache) cache=''; shift ;;
    --dry-run) dry=yes; shift ;;
    --tag | --target | --cuda | --model | --precision | --lightning-steps | --torch | --torchvision | --torch-index)
      check_value "$1" $# "${2:-}"
      case "$1" in
        --tag) tags+=("$2") ;;
        --target) target=$2 ;;
        --cuda) cuda=$2 ;;
        --model) model=$2 ;;
        --precision) precision=$2 ;;
        --lightning-steps) lightning=$2 ;;
        --torch) torch=$2 ;;
        --torchvision) vision=$2 ;;
        --torch-index) index=$2 ;;
      esac
      shift 2
      ;;
    *) fail "unknown argument: $1" ;;
  esac
done

[ ${#tags[@]} -gt 0 ] || fail "give at least one --tag"
for tag in "${tags[@]}"; do
  [[ $tag =~ ^[a-z0-9]+([._/-][a-z0-9._-]+)*(:[0-9]+/[a-z0-9._/-]+)?(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$ ]] || fail "not an image name: $tag"
done
case "$target" in slim | baked) ;; *) fail "unknown target: $target (known: slim, baked)" ;; esac
case "$cuda" in '' | cu128 | cu130) ;; *) fail "unknown CUDA: $cuda (known: cu128, cu130)" ;; esac
if [ "$target" != baked ] && [ -n "$model$precision$lightning" ]; then
  fail "--model, --precision and --lightning-steps belong to --target baked"
fi
case "$precision" in '' | 4bit | 8bit | bf16) ;; *) fail "unknown precision: $precision (known: 4bit, 8bit, bf16)" ;; esac
case "$lightning" in '' | 8 | 4 | 8,4 | 4,8) ;; *) fail "unknown steps: $lightning (known: 8, 4, 8,4)" ;; esac
if [ -n "$torch$vision$index" ]; then
  [ -n "$torch" ] && [ -n "$vision" ] && [ -n "$index" ] || fail "--torch, --torchvision and --torch-index belong together"
  [[ $torch =~ ^2\.[0-9]+\.[0-9]+ && $vision =~ ^0\.[0-9]+\.[0-9]+ ]] || fail "not versions: $torch, $vision"
  # torchvision 0.N is made for torch 2.(N-15); another pair fails at import.
  torch_minor=${torch#2.} vision_minor=${vision#0.}
  [ "${vision_minor%%.*}" -eq $((${torch_minor%%.*} + 15)) ] ||
    fail "torchvision $vision is not made for torch $torch (it would be 0.$((${torch_minor%%.*} + 15)).x)"
  [[ $index =~ ^https:// ]] || fail "--torch-index must be an https URL"
fi

command=(docker buildx build --platform linux/amd64 --target "$target")
for tag in "${tags[@]}"; do command+=(--tag "$tag"); done
[ -z "$cuda" ] || command+=(--build-arg "CUDA=$cuda")
[ -z "$torch" ] || command+=(--build-arg "TORCH_VERSION=$torch" --build-arg "TORCHVISION_VERSION=$vision" --build-arg "TORCH_INDEX_URL=$index")
[ -z "$model" ] || command+=(--build-arg "MODEL=$model")
[ -z "$precision" ] || command+=(--build-arg "PRECISION_MODE=$precision")
[ -z "$lightning" ] || command+=(--build-arg "LIGHTNING_STEPS=$lightning")
if [ "$target" = baked ] && [ -n "${HF_TOKEN:-}" ]; then
  command+=(--secret "id=HF_TOKEN,env=HF_TOKEN")
fi
if [ -n "$push" ]; then command+=(--push); else command+=(--load); fi
[ -n "$cache" ] || command+=(--no-cache)
command+=(.)

printf '%q ' "${command[@]}"
echo
[ -z "$dry" ] || exit 0
command -v docker >/dev/null || fail "docker is not installed; make image-check carries out the Dockerfile without it"
exec "${command[@]}"
