"""The environment: read once, every wrong variable told at once, no value repeated."""

import ipaddress
from typing import Any

import pytest
from pydantic import ValidationError

from worker import settings
from worker.errors import InvalidSettings


def faults(**environ: str) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as refused:
        settings.read(environ)
    error = refused.value
    for detail in error.details:
        assert f"{detail.field}: {detail.message}" in error.message
    return {detail.field: detail.message for detail in error.details}


def test_an_empty_environment_is_right() -> None:
    read = settings.read({})
    assert read.model == ()
    assert (read.use_lightning_lora, read.lightning_steps) == (True, (8,))
    assert (read.max_reply_bytes, read.max_image_bytes) == (18_000_000, 20_000_000)
    assert read.bucket_url_ttl_s == 7 * 24 * 3600
    assert not read.on_platform


def test_empty_values_count_as_not_set() -> None:
    assert settings.read(dict.fromkeys(("MODEL", "VERIFY", "MAX_PIXELS"), " ")) == settings.read({})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings.read({}).prefetch = True


# A value for every variable, and what it is read as.
VALUES: dict[str, tuple[str, Any]] = {
    "MODEL": ("qwen-image, tiny ,", ("qwen-image", "tiny")),
    "LIGHTNING_STEPS": ("4, 8", (4, 8)),
    "PRECISION_MODE": ("4BIT", "4bit"),
    "USE_LIGHTNING_LORA": ("false", False),
    "PREFETCH": ("1", True),
    "LOG_LEVEL": ("debug", "DEBUG"),
    "VERIFY": ("full", "full"),
    "MAX_PIXELS": ("4096", 4096),
    "MAX_REPLY_BYTES": ("10 MB", 10_000_000),
    "MAX_IMAGE_BYTES": ("500kb", 500_000),
    "FETCH_TOTAL_S": (" 2.5 ", 2.5),
    "RESPONSE_COMPAT": ("image_url", "image_url"),
    "HF_ENDPOINT": ("https://hub.example", "https://hub.example"),
    "ALLOWED_IMAGE_HOSTS": ("a.example,*.b.example", ("a.example", "*.b.example")),
    "ALLOWED_IMAGE_NETWORKS": (
        "127.0.0.0/8:8080,[::1]/128:80",
        (
            (ipaddress.ip_network("127.0.0.0/8"), 8080),
            (ipaddress.ip_network("::1/128"), 80),
        ),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_is_read_as_its_type(name: str) -> None:
    given, expected = VALUES[name]
    assert getattr(settings.read({name: given}), name.lower()) == expected


@pytest.mark.parametrize("names", [n for n in settings.variables() if len(n) > 1])
def test_the_first_name_of_a_variable_wins_over_its_aliases(names: tuple[str, ...]) -> None:
    first, other = names
    assert settings.read({other: "WARNING"}) == settings.read({first: "WARNING"})
    both = settings.read({first: "WARNING", other: "ERROR"})
    assert both == settings.read({first: "WARNING"})


# A wrong value for every variable that can be wrong.
WRONG = {
    "PRECISION_MODE": "fp16",
    "USE_LIGHTNING_LORA": "maybe",
    "LIGHTNING_STEPS": "8,8",
    "LIGHTNING_FUSED": "2",
    "HF_ENDPOINT": "hub.example",
    "DOWNLOAD_WORKERS": "0",
    "DOWNLOAD_RETRIES": "-1",
    "DOWNLOAD_STALL_S": "0",
    "MIN_STORAGE_FREE_GB": "inf",
    "VOLUME_SIZE_GB": "nan",
    "VERIFY": "none",
    "KEEP_SOURCE_WEIGHTS": "perhaps",
    "MAX_PIXELS": "1e6",
    "MAX_INPUT_IMAGES": "4",
    "MAX_IMAGE_BYTES": "1 TB",
    "MAX_IMAGE_PIXELS": "5",
    "MAX_IMAGES_PER_REQUEST": "5",
    "MAX_REPLY_BYTES": "12.5",
    "ALLOW_HTTP_IMAGES": "http",
    "ALLOWED_IMAGE_NETWORKS": "10.0.0.300/8:80",
    "FETCH_CONNECT_S": "-5",
    "FETCH_TOTAL_S": "soon",
    "JOB_DEADLINE_S": "-1",
    "BUCKET_ENDPOINT_URL": "https://user:pass@bucket.example",
    "BUCKET_PUBLIC_URL": "https://pictures.example/?key=",
    "BUCKET_URL_TTL_S": "604801",
    "PREFETCH": "yes please",
    "PNG_METADATA": "3",
    "RESPONSE_COMPAT": "picture",
    "STRICT_INPUT": "strictly",
    "REFRESH_WORKER": "never",
    "LOG_LEVEL": "LOUD",
    "LOG_PROMPTS": "some",
}


def test_all_wrong_variables_are_told_at_once() -> None:
    assert set(faults(**WRONG)) == set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_never_repeated(name: str) -> None:
    secret = f"{WRONG[name]}-hunter2"
    message = faults(**{name: secret})[name]
    assert "hunter2" not in message
    assert message.startswith("must be"), message


@pytest.mark.parametrize(
    "value", ["10.0.0.0/8", "10.0.0.0/8:0", "10.0.0.0/8:65536", ":80", "x:y", "a"]
)
def test_a_network_needs_a_cidr_and_a_port(value: str) -> None:
    assert "CIDR:port" in faults(ALLOWED_IMAGE_NETWORKS=value)["ALLOWED_IMAGE_NETWORKS"]


def test_a_fault_names_the_variable_that_was_set() -> None:
    assert set(faults(RUNPOD_LOG_LEVEL="loud")) == {"RUNPOD_LOG_LEVEL"}


def test_half_a_bucket_is_told_beside_the_other_faults() -> None:
    told = faults(BUCKET_ENDPOINT_URL="https://bucket.example", MAX_PIXELS="x")
    assert set(told) == {"MAX_PIXELS", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("BUCKET_SESSION_TOKEN", "token"), ("BUCKET_PUBLIC_URL", "https://pictures.example")],
)
def test_what_belongs_to_a_bucket_needs_one(name: str, value: str) -> None:
    told = faults(**{name: value})
    assert set(told) == {
        f"BUCKET_{key}" for key in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    }
    assert all(message == f"is needed beside {name}" for message in told.values())


@pytest.mark.parametrize("value", ["pictures.example", "ftp://x.example", "https://x.example/#a"])
def test_a_public_address_is_one_that_a_key_can_follow(value: str) -> None:
    assert set(faults(BUCKET_PUBLIC_URL=value)) >= {"BUCKET_PUBLIC_URL"}


def test_a_fused_lora_is_one_lora() -> None:
    assert "LIGHTNING_FUSED" in faults(LIGHTNING_FUSED="1", LIGHTNING_STEPS="8,4")
    assert "LIGHTNING_FUSED" in faults(LIGHTNING_FUSED="1", USE_LIGHTNING_LORA="0")
    assert settings.read({"LIGHTNING_FUSED": "1", "LIGHTNING_STEPS": "4"}).lightning_fused


def test_secrets_do_not_show() -> None:
    read = settings.read(
        {
            "HF_TOKEN": "hf_topsecret",
            "BUCKET_ENDPOINT_URL": "https://bucket.example",
            "BUCKET_ACCESS_KEY_ID": "AKtopsecret",
            "BUCKET_SECRET_ACCESS_KEY": "topsecret",
            "BUCKET_SESSION_TOKEN": "token-topsecret",
        }
    )
    assert "topsecret" not in repr(read)
    assert "topsecret" not in read.model_dump_json()


def test_the_platform_is_known_by_its_job_take_address() -> None:
    assert settings.read({"RUNPOD_WEBHOOK_GET_JOB": "https://x/job-take/$ID?gpu=x"}).on_platform


def test_the_home_of_weights_is_where_the_operator_says() -> None:
    assert str(settings.read({"QWEN_HOME": "/data/models"}).home) == "/data/models"


def test_every_variable_is_read_by_its_own_name() -> None:
    names = [name for names in settings.variables() for name in names]
    assert len(names) == len(set(names))
    assert all(name == name.upper() for name in names)
