"""RunPod's Hub files, against the Hub's rules and against what the worker itself accepts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tools import presets
from worker import settings, versions
from worker.driver import CONTEXT_BYTES
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.planning import plan_working
from worker.tasks import request
from worker.weights.spec import list_lightning_steps
from worlds import embedded

ROOT = Path(__file__).resolve().parents[2]
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
SIZES = json.loads((ROOT / "bench" / "results" / "sizes.json").read_text())
CONFIG = HUB["config"]
INPUTS = {row["key"]: row["input"] for row in CONFIG["env"] if "input" in row}
FIXED = {row["key"]: row["value"] for row in CONFIG["env"] if "value" in row}
# RunPod's pools and the GB of their GPUs (its documentation's list of GPU pools)
POOLS = {
    "AMPERE_16": 16,
    "AMPERE_24": 24,
    "ADA_24": 24,
    "ADA_32_PRO": 32,
    "AMPERE_48": 48,
    "ADA_48_PRO": 48,
    "AMPERE_80": 80,
    "ADA_80_PRO": 80,
    "BLACKWELL_96": 96,
    "HOPPER_141": 141,
    "BLACKWELL_180": 180,
}
KEYS = (SecretStr("a-key-of-sixteen"), SecretStr("another-key-of-more"))
# What a person may write into inputs of free text, where it is read as something else than text.
PARSED: dict[str, tuple[str, Any]] = {
    "MODEL": ("tiny, org/name@v1", ("tiny", "org/name@v1")),
    "HF_TOKEN_PATH": (__file__, Path(__file__)),
    "LIGHTNING": ("a/b/x-{n}.safetensors", "a/b/x-{n}.safetensors"),
    "TRANSFORMER": ("a/b/c", "a/b/c"),
    "LORAS": ("a=org/name/x.safetensors", (("a", "org/name/x.safetensors"),)),
    "LORA_SOURCES": ("names, hub", ("names", "hub")),
    "ALLOWED_HOSTS": ("a.example, b.example", ("a.example", "b.example")),
    "API_KEYS": ("a-key-of-sixteen, another-key-of-more", KEYS),
    "CORS_ORIGINS": ("https://a.example", ("https://a.example",)),
    "HEALTH_CHECK_PATH": ("/healthy", "/healthy"),
    "ALLOWED_IMAGE_HOSTS": ("a.example, *.b.example", ("a.example", "*.b.example")),
    **{
        key: ("/runpod-volume/x", Path("/runpod-volume/x"))
        for key in (
            "HF_HOME",
            "HF_HUB_CACHE",
            "MODEL_PATH",
            "MODEL_DIR",
            "RUNPOD_CACHE_DIR",
            "LORA_DIR",
        )
    },
}
# What some settings are wrong without, and others do not mind.
BESIDE = {
    "HF_TOKEN": "a-token",
    "BUCKET_ENDPOINT_URL": "https://s3.example",
    "BUCKET_ACCESS_KEY_ID": "an-access-key",
    "BUCKET_SECRET_ACCESS_KEY": "a-secret-key",
}
# set by RunPod or by tests, not by a person who deploys
NOT_FOR_USERS = {
    *("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID", "PORT", "PORT_HEALTH"),
    *("HOST", "PLAYGROUND", "ALLOWED_IMAGE_NETWORKS", "FETCH_NAMESERVERS"),
    *("RUNPOD_API_KEY", "RUNPOD_ENDPOINT_BASE_URL"),  # a caller's, not a worker's
}


def as_text(row: dict[str, Any], value: Any) -> str:
    """Write a value as the Hub puts it into the environment."""
    if row["type"] == "boolean":
        return str(row["trueValue"] if value else row["falseValue"])
    return str(value)


def defaults() -> dict[str, str]:
    return {key: as_text(row, row.get("default", "")) for key, row in INPUTS.items()}


def test_the_listing_has_what_the_hub_requires() -> None:
    assert set(HUB) == {"title", "description", "type", "category", "config"}
    assert 0 < len(HUB["description"]) <= 191
    assert HUB["type"] == "serverless"
    assert HUB["category"] in {"audio", "embedding", "language", "video", "image"}
    assert set(CONFIG) == {
        *("runsOn", "containerDiskInGb", "gpuCount", "gpuIds"),
        *("allowedCudaVersions", "presets", "env"),
    }
    assert CONFIG["runsOn"] == "GPU"
    assert CONFIG["gpuCount"] == 1


def test_the_pools_are_runpod_s_own_and_large_enough() -> None:
    """A model in 4bit fits every one of them with room to work in, along with its text encoder."""
    chosen = CONFIG["gpuIds"].split(",")
    assert len(chosen) == len(set(chosen))
    assert set(chosen) <= set(POOLS)
    rows = [row for row in CATALOGUE.rows if row.needs_gpu and "speech" not in row.tasks]
    working = max(plan_working(row, settings.read({}), "4bit") for row in rows)
    least = SIZES["4bit"]["device"] + (working + CONTEXT_BYTES) / 1e9
    assert all(POOLS[pool] >= least for pool in chosen)


def test_the_container_disk_holds_the_image_and_one_prepared_bf16_model_without_a_volume() -> None:
    image, bundle, shards = 9, 27.3 + 15.5 + 0.3 + 3.2 + 0.9, 2 * 5
    assert CONFIG["containerDiskInGb"] >= image + bundle + shards


@pytest.mark.parametrize("file", [HUB, TESTS], ids=["hub", "tests"])
def test_every_cuda_from_the_default_image_s_on_is_named(file: dict[str, Any]) -> None:
    """The match is exact: what the list leaves out is a host that no worker starts on."""
    default = versions.TORCH_BUILDS[0]
    allowed = [tuple(map(int, v.split("."))) for v in file["config"]["allowedCudaVersions"]]
    assert allowed[0] == default.cuda
    assert allowed == [r for r in versions.CUDA_RELEASES if r >= default.cuda]
    assert allowed == sorted(set(allowed))
    assert {build.cuda for build in versions.TORCH_BUILDS} <= set(allowed)


def test_every_input_is_of_a_form_that_the_hub_knows() -> None:
    keys = [row["key"] for row in CONFIG["env"]]
    assert len(keys) == len(set(keys))
    for row in INPUTS.values():
        assert row["name"]
        assert row["description"].endswith(".")
        assert isinstance(row["advanced"], bool)
        if row["type"] == "boolean":
            assert isinstance(row["default"], bool)
            assert (row["trueValue"], row["falseValue"]) == ("true", "false")
        elif row["type"] == "number":
            assert row["min"] <= row.get("default", row["min"]) <= row["max"]
        else:
            assert row["type"] == "string"
            options = [option["value"] for option in row.get("options", [])]
            assert not options or row["default"] in options


def test_every_setting_that_a_user_may_want_is_offered() -> None:
    names = {group[0] for group in settings.list_variables()}
    assert set(INPUTS) == names - NOT_FOR_USERS


def test_the_defaults_offered_are_the_worker_s_own() -> None:
    offered = settings.read(defaults())
    assert offered.model == (CATALOGUE.default,)
    (default,) = (row.default for row in settings.list_settings() if "MODEL" in row.names)
    assert default == f"`{CATALOGUE.default}`; off RunPod without a GPU `{CATALOGUE.embedded}`"
    assert offered.model_copy(update={"model": ()}) == settings.read({})


def allowed(key: str) -> list[tuple[str, Any]]:
    """Return values that the form allows, as written, and what the worker reads them as."""
    row = INPUTS[key]
    if row["type"] == "boolean":
        return [(as_text(row, value), value) for value in (True, False)]
    if row["type"] == "number":
        return [(as_text(row, row[end]), row[end]) for end in ("min", "max")]
    if "options" in row:
        chosen = [option["value"] for option in row["options"]]
        return [(value, value) for value in chosen if value]
    text = "https://x.example" if key.endswith(("_URL", "_ENDPOINT")) else "some-text"
    return [PARSED.get(key, (text, text))]


@pytest.mark.parametrize("key", INPUTS)
def test_every_value_that_the_form_allows_is_read_as_itself(key: str) -> None:
    values = allowed(key)
    assert values
    for text, meant in values:
        found = getattr(settings.read({**BESIDE, key: text}), key.lower())
        if key == "LIGHTNING_STEPS":
            found = ",".join(map(str, found))
        found = found.get_secret_value() if isinstance(found, SecretStr) else found
        assert found == meant


def test_the_presets_are_settings_that_resolve_to_models() -> None:
    assert [preset["defaults"] for preset in CONFIG["presets"]] == list(presets.PRESETS.values())
    for preset in CONFIG["presets"]:
        assert set(preset["defaults"]) <= set(INPUTS)
        chosen = {key: as_text(INPUTS[key], value) for key, value in preset["defaults"].items()}
        given = settings.read(defaults() | chosen)
        for spec in CATALOGUE.resolve(given.model, given, has_gpu=True):
            steps = list_lightning_steps(spec, given)
            assert bool(steps) == (given.use_lightning_lora and bool(spec.lightning))


# FLUX.2 klein 4B: 7.75 and 2.29 of the transformer, 6.23 and 2.18 of the text encoder, 0.17 of VAE.
KLEIN_GB = {"bf16": 14.14, "4bit": 4.645}


def test_a_preset_names_the_memory_that_its_models_take_and_pools_that_have_it() -> None:
    """Counted from the parts: two models share the text encoder and the VAE."""
    for preset in CONFIG["presets"]:
        chosen = preset["defaults"]
        parts = SIZES[chosen["PRECISION_MODE"]]
        flux = chosen["MODEL"].split(",").count("flux-2-klein-4b")
        models = len(chosen["MODEL"].split(",")) - flux
        counts = len(chosen["LIGHTNING_STEPS"].split(",")) if "LIGHTNING_STEPS" in chosen else 0
        shared = parts["text_encoder"] + parts["vae"]
        memory = models * (parts["transformer"] + counts * parts["lora"])
        memory += (shared if models else 0) + flux * KLEIN_GB[chosen["PRECISION_MODE"]]
        if chosen["MODEL"] == "orpheus":
            speech = json.loads((ROOT / "bench" / "results" / "speech.json").read_text())
            memory = speech["sizes"][chosen["PRECISION_MODE"]]["device"]
        stated = re.fullmatch(r".+: (\w+), ([\d.]+) GB of weights, for (.+)", preset["name"])
        assert stated is not None
        assert (stated[1], float(stated[2])) == (chosen["PRECISION_MODE"], round(memory, 1))
        pools = stated[3].split(" or ")
        (size,) = {POOLS[pool] for pool in pools}
        assert size >= memory + presets.compute_room(chosen)
        assert set(pools) == {pool for pool, own in presets.POOLS.items() if own == size}


def test_no_smaller_pool_would_do_for_a_preset() -> None:
    for memory, size in ((0.0, 16), (16.0, 16), (16.1, 24), (24.0, 24), (24.1, 48), (80.0, 80)):
        assert {presets.POOLS[pool] for pool in presets.list_pools(memory)} == {size}


def test_the_pools_are_those_of_the_guide_with_their_memory() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z]+_\d+(?:_PRO)?) \|", guide, re.MULTILINE)
    assert rows == list(presets.POOLS)
    assert presets.POOLS.items() <= POOLS.items()


def test_a_precision_is_offered_with_the_memory_of_one_model() -> None:
    labels = {option["value"]: option["label"] for option in INPUTS["PRECISION_MODE"]["options"]}
    assert set(labels) == {"auto", *SIZES}
    for precision, sizes in SIZES.items():
        assert f": {sizes['device']:.1f} GB" in labels[precision]


def test_every_secret_says_to_be_given_as_one() -> None:
    """The form shows what is typed into it: it has no type for secrets."""
    offered = {name.upper() for name in settings.SECRETS} & set(INPUTS)
    assert len(offered) == 5
    used = [re.findall(r"\{\{ RUNPOD_SECRET_\w+ \}\}", INPUTS[k]["description"]) for k in offered]
    assert all(len(names) == 1 for names in used)
    assert len({names[0] for names in used}) == 5


def test_a_first_start_has_time_to_prepare() -> None:
    published, slow_gigabytes_a_second = 58, 0.05
    assert int(FIXED["RUNPOD_INIT_TIMEOUT"]) >= published / slow_gigabytes_a_second
    assert FIXED["RUNPOD_LOG_LEVEL"] == "INFO"


def jobs() -> list[Any]:
    """Return the input of every example that the repository ships."""
    examples = sorted((ROOT / "docs" / "examples").glob("*.json"))
    shipped = [*examples, ROOT / "test_input.json"]
    return [
        *(pytest.param(test["input"], id=test["name"]) for test in TESTS["tests"]),
        *(pytest.param(json.loads(f.read_text())["input"], id=f.stem) for f in shipped),
    ]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where the image's command is started: a LORA_DIR in the image is found from there."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("job", jobs())
def test_every_example_is_a_job_that_the_embedded_models_take_without_a_warning(job: Any) -> None:
    environ = {row["key"]: row["value"] for row in TESTS["config"]["env"]}
    given = settings.read({**environ, "STRICT_INPUT": "true"})
    served = embedded.served(given)
    # a guide's reader has one model; here others are served next to that which weighs references
    weighs = {"model": "tiny-flux"} if "reference_weights" in job else {}
    parsed = request.parse({**weighs, **job}, served, given)
    assert not parsed.warnings


def test_the_examples_show_what_callers_may_ask() -> None:
    """Each task; a LoRA, references that are weighed, a preset, a mask and a strength."""
    given = [case.values[0] for case in jobs()]
    fields = {name for job in given for name in job}
    assert {"loras", "reference_weights", "preset", "mask", "strength", "outpaint"} <= fields


def test_the_hub_s_own_test_needs_neither_a_volume_nor_a_download() -> None:
    config = TESTS["config"]
    environ = {row["key"]: row["value"] for row in config["env"]}
    given = settings.read(environ)
    specs = CATALOGUE.resolve(given.model, given, has_gpu=True)
    assert all(spec.embedded and spec.folder and spec.folder.is_dir() for spec in specs)
    assert config["gpuTypeId"].startswith("NVIDIA ")
    served = tuple(embedded.served(given))
    parsed = [request.parse(test["input"], served, given) for test in TESTS["tests"]]
    asked = {one.task.name for one in parsed if isinstance(one, request.Request)}
    assert asked == {task for spec in specs for task in spec.tasks}
    names = [test["name"] for test in TESTS["tests"]]
    assert len(names) == len(set(names))
    assert all(test["timeout"] >= 60_000 for test in TESTS["tests"])
