# Two commands: make demo, make test. Both set up everything themselves, into .venv/.
# TORCH names the image whose torch is used: cu128, the default image's, or cu130 (in .venv-cu130/).
PYTHON ?= python3
TORCH ?= cu128
VENV := $(if $(filter cu128,$(TORCH)),.venv,.venv-$(TORCH))
BIN := $(VENV)/bin
# Where it is set, every process compiles all sources and tests anew: 16 s a worker of pytest.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test trials pretend-gpu certain alone stalls mutants faults fuzz soak storm stores clients api browser playground load gpu-check quick check readme lint format train-tiny train-speech eval-tiny lock image-check first-hour clean
help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

LOCKS := $(patsubst %,builder/requirements-%.lock,uv $(TORCH) dev parity)
$(VENV)/.ready: $(LOCKS) builder/venv.sh pyproject.toml
	CUDA=$(TORCH) VENV=$(VENV) PYTHON=$(PYTHON) bash builder/venv.sh --dev
	touch $@

setup: $(VENV)/.ready ## install everything into .venv/

demo: setup ## a job through RunPod's API on loopback to the real worker; pictures in out/
	$(BIN)/python -m tools.demo

# Three on two cores, since many tests wait for processes: 11 to 16 minutes, as the machine is.
TESTERS ?= 3
test: setup ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TESTERS) --dist loadfile -m "not trial"

trials: setup ## run what make test leaves out: the mutation tool and the GPU bench from end to end
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m trial tests/tools tests/bench

TIMES ?= 10
certain: setup ## run the tests TIMES times in random order, half of them with a busy neighbour; name what failed
	$(BIN)/python -m tools.certain --times $(TIMES)

alone: setup ## run every test function by itself (20 minutes): what needs something of another test fails
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.alone

SEED ?= 1
stalls: setup ## run the tests while their processes stand still for moments: what counts on being soon fails
	$(BIN)/python -m tools.certain --times 1 --seed $(SEED) --neighbour stalls

pretend-gpu: setup ## the worker's own code at the published sizes on a pretend CUDA device (20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.pretend --write
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.pretend.flux --write
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.pretend.speech --write
	$(BIN)/python -m tools.pretend.inductor

faults: setup ## every fault of hub, network, disk and neighbours, five seeds each (as root, for small disks)
	PYTHONPATH=tests $(BIN)/python -m faults.campaign

FUZZ_S ?= 300
FUZZ_EXAMPLES ?= 3000
fuzz: setup ## the properties on FUZZ_EXAMPLES inputs each, then FUZZ_S seconds of coverage-guided fuzzing per target
	$(BIN)/uv pip install -q --require-hashes -r builder/requirements-fuzz.lock
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q -m hypothesis --timeout=0
	for target in parsing decoding addressing; do \
	  PYTHONPATH=tests $(BIN)/python -m fuzz.campaign $$target $(FUZZ_S) out/fuzz || exit 1; done

first-hour: setup ## run every command of README and docs in a fresh Debian (as root; 30 minutes, 25 GB of disk)
	$(BIN)/python -m tools.first_hour

stores: setup ## uploads to a real S3 server (rclone), and to yours with STORE_ENDPOINT and its keys
	$(BIN)/uv pip install -q --require-hashes -r builder/requirements-stores.lock
	$(BIN)/python -m pytest -q tests/stores/real_stores.py

clients: setup ## the door with the clients that people use: Python's in .venv-clients/, node's if npm is there
	test -x .venv-clients/bin/python || $(BIN)/uv venv -q --python $(BIN)/python .venv-clients
	$(BIN)/uv pip install -q --python .venv-clients/bin/python --require-hashes -r builder/requirements-clients.lock
	if command -v npm; then cd tests/clients && npm install --silent --no-audit --no-fund --no-package-lock; \
	  else echo "npm is missing: clients of node are not run (apt-get install nodejs npm)"; fi
	$(BIN)/python -m pytest -q tests/clients/real_clients.py

api: setup ## /openapi.json by schemathesis in .venv-api/: whatever it allows, and what it does not, against the door
	test -x .venv-api/bin/python || $(BIN)/uv venv -q --python $(BIN)/python .venv-api
	$(BIN)/uv pip install -q --python .venv-api/bin/python --require-hashes -r builder/requirements-api.lock
	$(BIN)/python -m pytest -q tests/clients/real_api.py

FIGURES ?= out/gpu-check.json
gpu-check: setup ## on a CUDA machine: the embedded models, errors, waits, compiling, VAE, attention; figures in FIGURES
	mkdir -p $(dir $(FIGURES))
	$(BIN)/python -m pytest -c tests/gpu/pytest.ini tests/gpu --figures $(abspath $(FIGURES))

soak: setup ## ten thousand jobs through the real loop, with bad, slow and cancelled ones among them
	$(BIN)/python bench/soak.py

JOBS ?= 1000
PRECISION ?= bf16
storm: setup ## JOBS mixed jobs that share steps, some cancelled: every picture equal to the one made alone
	$(BIN)/python bench/storm.py --jobs $(JOBS) --precision $(PRECISION)

browser: setup ## the playground in Debian's chromium: text, edit, cancel, restore, error, phone, axe if npm is there
	test -x .venv-browser/bin/python || $(BIN)/uv venv -q --python $(BIN)/python .venv-browser
	$(BIN)/uv pip install -q --python .venv-browser/bin/python --require-hashes -r builder/requirements-browser.lock
	if command -v npm; then cd tests/browser && npm install --silent --no-audit --no-fund --no-package-lock; \
	  else echo "npm is missing: axe is not run (apt-get install nodejs npm)"; fi
	$(BIN)/python -m pytest -q tests/browser/real_browser.py

playground: setup ## the HTTP door and its page with the embedded model, on http://127.0.0.1:8000
	MODEL=tiny $(BIN)/python -m worker serve

load: setup ## 2,000 requests by 64 connections to the door with the embedded model, a third of them misbehaving
	$(BIN)/python bench/load.py

ROOM ?= all
COUNT ?= 20
WORKERS ?= 2
mutants: setup ## change COUNT places of ROOM, picked by SEED, one at a time; name the changes that no test notices
	$(BIN)/python -m tools.mutants --seed $(SEED) --room $(ROOM) --count $(COUNT) --workers $(WORKERS)

# Files that load neither torch nor a model: about 3,200 tests in 40 s on two quiet cores.
QUICK := tests/edge tests/jobs tests/tools/test_readme.py tests/families/test_words.py \
  $(addprefix tests/tasks/test_,task.py size.py capabilities.py) \
  $(addprefix tests/doors/,test_start.py runpod/test_wire.py) \
  $(addprefix tests/media/test_,address.py url.py inline.py stores.py jpeg.py) \
  $(addprefix tests/weights/test_,proof.py temporary.py space.py retry.py) \
  $(addprefix tests/test_,verbs.py errors.py import_direction.py log.py preflight.py residency.py \
    settings.py unique_names.py words.py)
quick: setup ## the tests that load no model, in under a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(QUICK)

check: lint quick ## before every commit: lint, types, the quick tests

readme: setup ## write the tables of README and docs/ from the code, and the walks
	$(BIN)/python -m tools.readme
	$(BIN)/python -m tools.walk --write

lint: setup ## ruff, its format check, mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## format with ruff
	$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format .

train-tiny: setup ## train checkpoints/tiny from scratch (TRAIN="--compile --bf16" with g++ and AMX: 2 hours on 2 cores); MODEL=tiny-flux
ifeq ($(MODEL),tiny-flux)
	$(BIN)/python -m training.tiny.flux.make out/train-tiny-flux --out out/tiny-flux $(TRAIN)
else
	$(BIN)/python -m training.tiny.train out/train-tiny $(TRAIN)
endif

train-speech: setup ## train checkpoints/tiny-speech from scratch (SPEECH="--minutes 50 --bf16")
	$(BIN)/python -m training.speech.make out/train-speech $(SPEECH)

eval-tiny: setup ## check what checkpoints/tiny draws and edits, from its pixels; MODEL=tiny-flux
ifeq ($(MODEL),tiny-flux)
	$(BIN)/python -m training.tiny.flux.evaluate
else
	$(BIN)/python -m training.tiny.evaluate
endif

lock: setup ## resolve the dependencies again, with hashes
	cd builder && for name in uv cu128 cu130 dev parity fuzz stores clients api browser; do \
	  UV_CUSTOM_COMPILE_COMMAND="make lock" ../$(BIN)/uv pip compile -q --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url $$(test $$name != parity || echo --no-deps) -o requirements-$$name.lock requirements-$$name.in || exit 1; done

image-check: setup ## build every image with buildah and use its worker (as root; 20 minutes, 25 GB of disk)
	$(BIN)/python -m tools.image_check

clean: ## remove what set-up and the demo made
	rm -rf .venv .venv-* out
