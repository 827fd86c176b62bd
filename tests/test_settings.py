"""The environment: read once, every wrong variable reported at once, no value repeated."""

import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker import log, settings
from worker.errors import InvalidSettings

BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://bucket.example",
    "BUCKET_ACCESS_KEY_ID": "AKtopsecret",
    "BUCKET_SECRET_ACCESS_KEY": "verysecret",
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the secrets that the log knows as they were."""
    monkeypatch.setattr(log, "_secrets", set())


def faults(**environ: str) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as refused:
        settings.read(environ)
    error = refused.value
    assert error.message == "; ".join(f"{fault.field}: {fault.message}" for fault in error.details)
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
    "BATCH_SIZE": ("8", 8),
    "BATCH_TIMEOUT_MS": ("40", 40),
    "BATCH_MAX_PIXELS": ("4096", 4096),
    "COMPILE": ("OFF", "off"),
    "COMPILE_CACHE": ("Off", "off"),
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


@pytest.mark.parametrize("names", [n for n in settings.list_variables() if len(n) > 1])
def test_the_first_name_of_a_variable_wins_over_its_aliases(names: tuple[str, ...]) -> None:
    first, *others = names
    alone = settings.read({first: "WARNING"})
    assert alone != settings.read({})
    for other in others:
        assert settings.read({other: "WARNING"}) == alone
        assert settings.read({first: "WARNING", other: "ERROR"}) == alone
        assert settings.read({first: '""', other: "WARNING"}) == alone


QUOTES = ['"{}"', "'{}'", ' "{}" ', '" {} "', "\t'{}'\n"]


@pytest.mark.parametrize("quotes", QUOTES)
@pytest.mark.parametrize("name", VALUES)
def test_one_pair_of_quotes_around_a_value_is_taken_off(name: str, quotes: str) -> None:
    given, expected = VALUES[name]
    assert getattr(settings.read({name: quotes.format(given)}), name.lower()) == expected


@pytest.mark.parametrize("quotes", QUOTES)
def test_quotes_are_taken_off_secrets_too(quotes: str) -> None:
    environ = {**BUCKET, "HF_TOKEN": "hf_topsecret"}
    plain = settings.read(environ)
    assert settings.read({name: quotes.format(value) for name, value in environ.items()}) == plain


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('a"b', 'a"b'),
        ("it's", "it's"),
        ('"it\'s"', "it's"),
        ("'say \"x\"'", 'say "x"'),
        ('"lone', '"lone'),
        ("lone'", "lone'"),
        ("'", "'"),
        ("\"other'", "\"other'"),
        ("\"'both'\"", "'both'"),
        ("''\"", "''\""),
        ('"a" and "b"', '"a" and "b"'),
        ('"""', '"""'),
    ],
)
def test_other_quotes_stay_as_they_are(written: str, read: str) -> None:
    assert settings.read({"BUCKET_PREFIX": written}).bucket_prefix == read


@pytest.mark.parametrize("nothing", ['""', "''", '" "', " '' "])
def test_quotes_around_nothing_are_nothing(nothing: str) -> None:
    names = ("MODEL", "MAX_PIXELS", "HF_TOKEN", "USE_LIGHTNING_LORA", "BUCKET_ENDPOINT_URL")
    assert settings.read(dict.fromkeys(names, nothing)) == settings.read({})


def test_each_word_of_a_list_may_be_quoted() -> None:
    read = settings.read({"MODEL": "\"qwen-image\", 'tiny',''", "LIGHTNING_STEPS": '"8","4"'})
    assert (read.model, read.lightning_steps) == (("qwen-image", "tiny"), (8, 4))


@pytest.mark.parametrize(
    "written",
    [
        *("hf_topsecret", "Bearer hf_topsecret", "bearer  hf_topsecret", '"Bearer hf_topsecret"'),
        *("'hf_topsecret'", "Bearer 'hf_topsecret'", "Authorization: Bearer hf_topsecret"),
        *("authorization:bearer hf_topsecret", " hf_topsecret\n"),
    ],
)
@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"])
def test_a_token_is_read_however_it_was_copied(name: str, written: str, tmp_path: Path) -> None:
    if name == "HF_TOKEN_PATH":
        (tmp_path / "token").write_text(written + "\n")
        written = str(tmp_path / "token")
    token = settings.read({name: written}).hf_token
    assert token is not None
    assert token.get_secret_value() == "hf_topsecret"


@pytest.mark.parametrize(
    "written",
    [
        "hf top",
        "Bearer",
        "Bearer ''",
        "hf_\u200bx",
        "hf_\u00fc",
        '"hf_x',
        "Bearer a b",
    ],
)
def test_what_can_be_no_token_is_reported_without_it(written: str) -> None:
    assert faults(HF_TOKEN=written) == {
        "HF_TOKEN": "must be a token alone, as in hf_...: no blanks, no quotes, ASCII only"
    }


def test_a_variable_goes_before_the_file_of_a_token(tmp_path: Path) -> None:
    environ = {"HF_TOKEN_PATH": str(tmp_path / "nothing"), "HUGGING_FACE_HUB_TOKEN": "hf_this"}
    token = settings.read(environ).hf_token
    assert token is not None
    assert token.get_secret_value() == "hf_this"


@pytest.mark.parametrize("what", ["nothing", "folder", "pipe", "binary", "~nobody-here/x"])
def test_a_token_file_that_cannot_be_read_is_reported_without_its_path(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    path = what if what.startswith("~") else str(tmp_path / what)
    message = faults(HF_TOKEN_PATH=path)["HF_TOKEN_PATH"]
    assert message.startswith("must be a ")
    assert str(tmp_path) not in message


@pytest.mark.parametrize("content", ["", "\n", "hf a", "h" * 4097, "h" * 4000 + " " * 100])
def test_a_token_file_without_a_token_is_reported_by_its_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    assert set(faults(HF_TOKEN_PATH=str(tmp_path / "token"))) == {"HF_TOKEN_PATH"}


def test_a_token_file_may_have_4096_characters(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("h" * 4096)
    token = settings.read({"HF_TOKEN_PATH": str(tmp_path / "token")}).hf_token
    assert token is not None
    assert token.get_secret_value() == "h" * 4096


def test_every_secret_of_the_environment_is_hidden_also_where_it_is_not_used() -> None:
    log._secrets.clear()
    unused = {
        "HF_TOKEN": "'Bearer hf_first'",
        "HUGGING_FACE_HUB_TOKEN": '"Bearer hf_second"',
        "API_KEYS": "a-key-of-sixteen, another-key-of-more",
        **BUCKET,
    }
    settings.read(unused)
    faults(HF_TOKEN="hf_third with blanks", MAX_PIXELS="x")
    for secret in (
        *("hf_first", "hf_second", "hf_third with blanks", "AKtopsecret", "verysecret"),
        *("a-key-of-sixteen", "another-key-of-more"),
    ):
        assert log.redact(f"so {secret}!") == "so [hidden]!"


def test_the_cache_of_the_hub_is_where_it_is_said_to_be() -> None:
    def cache(**environ: str) -> str:
        return str(settings.read(environ).hub_cache)

    assert cache() == "None"
    assert cache(HF_HOME="/data/hf") == "/data/hf/hub"
    assert cache(HF_HOME="/data/hf", HF_HUB_CACHE="/cache") == "/cache"
    assert cache(HUGGINGFACE_HUB_CACHE="/old") == "/old"
    assert cache(HUGGINGFACE_HUB_CACHE="/old", HF_HUB_CACHE="/new") == "/new"
    assert cache(HF_HOME="~/hf") == str(Path.home() / "hf/hub")


@pytest.mark.parametrize(
    "name", ["MODEL_DIR", "MODEL_PATH", "RUNPOD_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE"]
)
def test_a_path_may_begin_with_the_home(name: str) -> None:
    assert getattr(settings.read({name: "~/x"}), name.lower()) == Path.home() / "x"
    reported = faults(**{name: "~nobody-here/x"})
    assert reported == {name: "must be a path; ~ stands for no home here"}


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
    "MAX_INPUT_IMAGES": "5",
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
    "BATCH_SIZE": "9",
    "BATCH_TIMEOUT_MS": "-1",
    "BATCH_MAX_PIXELS": "4095",
    "COMPILE": "true",
    "COMPILE_CACHE": "on",
    "PNG_METADATA": "3",
    "RESPONSE_COMPAT": "picture",
    "STRICT_INPUT": "strictly",
    "REFRESH_WORKER": "never",
    "LOG_LEVEL": "LOUD",
    "LOG_PROMPTS": "some",
}


def test_all_wrong_variables_are_reported_at_once() -> None:
    assert set(faults(**WRONG)) == set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_never_repeated(name: str) -> None:
    secret = f"{WRONG[name]}-hunter2"
    message = faults(**{name: secret})[name]
    assert "hunter2" not in message
    assert message.startswith("must be"), message


@pytest.mark.parametrize(
    "value",
    [
        *("10.0.0.0/8", "10.0.0.0/8:0", "10.0.0.0/8:65536", ":80", "x:y", "a"),
        *("10.0.0.0/8:100000", "10.0.0.0/8:0065536", "10.0.0.0/8:٨٠", "10.0.0.0/8:" + 5000 * "8"),
    ],
    ids=lambda value: value[:40],
)
def test_a_network_needs_a_cidr_and_a_port(value: str) -> None:
    assert "CIDR:port" in faults(ALLOWED_IMAGE_NETWORKS=value)["ALLOWED_IMAGE_NETWORKS"]


def test_a_fault_names_the_variable_that_was_set() -> None:
    assert set(faults(RUNPOD_LOG_LEVEL="loud")) == {"RUNPOD_LOG_LEVEL"}


def test_half_a_bucket_is_reported_with_the_other_faults() -> None:
    reported = faults(BUCKET_ENDPOINT_URL="https://bucket.example", MAX_PIXELS="x")
    assert set(reported) == {"MAX_PIXELS", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("BUCKET_SESSION_TOKEN", "token"), ("BUCKET_PUBLIC_URL", "https://pictures.example")],
)
def test_what_belongs_to_a_bucket_needs_one(name: str, value: str) -> None:
    reported = faults(**{name: value})
    assert set(reported) == {
        f"BUCKET_{key}" for key in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    }
    assert all(message == f"is required with {name}" for message in reported.values())


@pytest.mark.parametrize("value", ["pictures.example", "ftp://x.example", "https://x.example/#a"])
def test_a_public_address_is_one_that_a_key_can_follow(value: str) -> None:
    assert set(faults(BUCKET_PUBLIC_URL=value)) >= {"BUCKET_PUBLIC_URL"}


def test_a_fused_lora_is_one_lora() -> None:
    assert "LIGHTNING_FUSED" in faults(LIGHTNING_FUSED="1", LIGHTNING_STEPS="8,4")
    assert "LIGHTNING_FUSED" in faults(LIGHTNING_FUSED="1", USE_LIGHTNING_LORA="0")
    assert settings.read({"LIGHTNING_FUSED": "1", "LIGHTNING_STEPS": "4"}).lightning_fused


def test_not_even_an_error_that_nobody_expected_repeats_a_value() -> None:
    """Its traceback would be in the log."""
    with pytest.raises(ValidationError) as error:
        settings.Settings.model_validate({"port": "a-secret-by-mistake"})
    assert "a-secret-by-mistake" not in str(error.value)


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
    names = [name for names in settings.list_variables() for name in names]
    assert len(names) == len(set(names))
    assert all(name == name.upper() for name in names)


# What every number takes at its bounds, and the nearest that it refuses.
BOUNDS: dict[str, tuple[list[str], list[str]]] = {
    "DOWNLOAD_WORKERS": (["1", "64"], ["0", "65", "1.5"]),
    "DOWNLOAD_RETRIES": (["0", "100"], ["-1", "101"]),
    "DOWNLOAD_STALL_S": (["0.001", "1e9"], ["0", "-1", "inf"]),
    "MIN_STORAGE_FREE_GB": (["0", "0.5"], ["-0.1", "nan"]),
    "VOLUME_SIZE_GB": (["0.1", "5000"], ["0", "inf"]),
    "MAX_PIXELS": (["4096"], ["4095", "0"]),
    "MAX_INPUT_IMAGES": (["1", "4"], ["0", "5"]),
    "MAX_IMAGE_BYTES": (["1024", "2 KB"], ["1023", "1KB"]),
    "MAX_IMAGE_PIXELS": (["65536"], ["65535"]),
    "MAX_IMAGES_PER_REQUEST": (["1", "4"], ["0", "5"]),
    "MAX_REPLY_BYTES": (["1024"], ["1023"]),
    "FETCH_CONNECT_S": (["0.1"], ["0"]),
    "FETCH_TOTAL_S": (["0.1"], ["0"]),
    "JOB_DEADLINE_S": (["0", "0.5"], ["-0.5"]),
    "MAX_LORAS": (["0", "8"], ["-1", "9"]),
    "MAX_LORA_BYTES": (["1024"], ["1023"]),
    "LORA_FETCH_S": (["0.1"], ["0"]),
    "LORA_CACHE_GB": (["4.5", "5000"], ["0", "-1", "inf"]),
    "BUCKET_URL_TTL_S": (["60", "604800"], ["59", "604801"]),
    "BATCH_SIZE": (["1", "8"], ["0", "9"]),
    "BATCH_TIMEOUT_MS": (["0", "60000"], ["-1", "60001"]),
    "BATCH_MAX_PIXELS": (["4096"], ["4095"]),
    "PORT": (["1", "65535"], ["0", "65536"]),
    "PORT_HEALTH": (["1", "65535"], ["0", "65536"]),
    "HTTP_QUEUE": (["0", "1000"], ["-1", "1001"]),
    "MAX_BODY_BYTES": (["1024"], ["1023"]),
    "LIGHTNING_STEPS": (["2", "100", "2,100"], ["1", "101", "8,1", "8,101", "8,8", ","]),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_is_taken_at_its_bounds_and_not_beyond(name: str) -> None:
    good, bad = BOUNDS[name]
    # where a port needs no key, and with room for every LoRA
    base = {"HOST": "127.0.0.1", "LORA_CACHE_GB": "5000"}
    for text in good:
        assert getattr(settings.read({**base, name: text}), name.lower()) is not None
    for text in bad:
        assert name in faults(**{**base, name: text}), text


def test_every_number_has_bounds() -> None:
    kinds = {
        name.upper(): str(field.annotation)
        for name, field in settings.Settings.model_fields.items()
    }
    numbers = {name for name, kind in kinds.items() if "int" in kind or "float" in kind}
    assert numbers - {"ALLOWED_IMAGE_NETWORKS"} == set(BOUNDS)


def test_every_default_is_what_readme_says() -> None:
    """As a value where nothing is set, next to the words of the table."""
    read = settings.read({})
    words = {row.names[0]: row.default for row in settings.list_settings()}
    for name, value, word in (
        ("MODEL_REVISION", None, "the newest"),
        ("MODEL_PATH", None, "none"),
        ("HF_ENDPOINT", None, "the public hub"),
        ("HF_HUB_OFFLINE", False, "`false`"),
        ("PRECISION_MODE", "auto", "`auto`"),
        ("USE_LIGHTNING_LORA", True, "`true`"),
        ("LIGHTNING_FUSED", False, "`false`"),
        ("DOWNLOAD_WORKERS", 8, "`8`"),
        ("DOWNLOAD_RETRIES", 5, "`5`"),
        ("DOWNLOAD_STALL_S", 60, "`60`"),
        ("MIN_STORAGE_FREE_GB", 2, "`2`"),
        ("VOLUME_SIZE_GB", None, "none"),
        ("RUNPOD_CACHE_DIR", Path("/runpod-volume/huggingface-cache/hub"), None),
        ("VERIFY", "sizes", "`sizes`"),
        ("KEEP_SOURCE_WEIGHTS", False, "`false`"),
        ("MAX_PIXELS", None, "by the device's memory"),
        ("MAX_INPUT_IMAGES", 4, "`4`"),
        ("MAX_IMAGE_BYTES", 20_000_000, "`20 MB`"),
        ("MAX_IMAGE_PIXELS", 25_000_000, "`25000000`"),
        ("MAX_IMAGES_PER_REQUEST", 4, "`4`"),
        ("MAX_REPLY_BYTES", 18_000_000, "`18 MB`"),
        ("ALLOWED_IMAGE_HOSTS", (), "any public host"),
        ("ALLOW_HTTP_IMAGES", False, "`false`"),
        ("ALLOWED_IMAGE_NETWORKS", (), "none"),
        ("FETCH_NAMESERVERS", (), "the system's"),
        ("FETCH_CONNECT_S", 5, "`5`"),
        ("FETCH_TOTAL_S", 20, "`20`"),
        ("JOB_DEADLINE_S", 0, "`0`"),
        ("BUCKET_PREFIX", "", "none"),
        ("BUCKET_URL_TTL_S", 604_800, "`604800`"),
        ("PREFETCH", False, "`false`"),
        ("COMPILE", "auto", "`auto`"),
        ("COMPILE_CACHE", "auto", "`auto`"),
        ("PNG_METADATA", True, "`true`"),
        ("RESPONSE_COMPAT", None, "none"),
        ("STRICT_INPUT", False, "`false`"),
        ("REFRESH_WORKER", False, "`false`"),
        ("LOG_LEVEL", "INFO", "`INFO`"),
        ("LOG_PROMPTS", False, "`false`"),
        ("MODEL", (), "`qwen-image-edit-2511`; off RunPod without a GPU `tiny`"),
        ("MODEL_DIR", None, "`/runpod-volume/models` with a volume, else a temporary folder"),
        ("HF_TOKEN", None, "none"),
        ("HF_HUB_CACHE", None, "`hub` in `HF_HOME`"),
        ("LIGHTNING_STEPS", (8,), "`8`; tiny `8,4`"),
        ("LIGHTNING", None, "the catalogue's, or the model's own"),
        ("TRANSFORMER", None, "the model's own"),
        ("LORAS", (), "none"),
        ("LORA_SOURCES", None, "`names`; off RunPod `names,hub,urls`"),
        ("LORA_HUB_TOKEN", False, "`false`"),
        ("MAX_LORAS", 3, "`3`"),
        ("MAX_LORA_BYTES", 1_500_000_000, "`1500 MB`"),
        ("LORA_FETCH_S", 300, "`300`"),
        ("LORA_CACHE_GB", 10, "`10`"),
        ("SHRINK", False, "`false`"),
        ("BUCKET_STYLE", "auto", "`auto`"),
        ("BUCKET_REGION", None, "by the endpoint's host, else `us-east-1`"),
        ("BATCH_SIZE", 1, "`1`"),
        ("BATCH_TIMEOUT_MS", 0, "`0`"),
        ("BATCH_MAX_PIXELS", 1024 * 1024, "`1048576`"),
        ("LIGHTNING_MERGE", "auto", "`auto`"),
        ("SERVE", "auto", "`auto`"),
        ("HOST", None, "`127.0.0.1`; on RunPod `0.0.0.0`"),
        ("PORT", None, "`8000`; on RunPod `80`"),
        ("PORT_HEALTH", None, "the same as `PORT`"),
        ("HEALTH_CHECK_PATH", "/ping", "`/ping`"),
        ("HTTP_QUEUE", 8, "`8`"),
        ("MAX_BODY_BYTES", 30_000_000, "`30 MB`"),
        (
            *("API_KEYS", ()),
            "none, which is allowed on `127.0.0.1` and behind RunPod's load balancer alone",
        ),
        ("CORS_ORIGINS", (), "none"),
        ("ALLOWED_HOSTS", (), "`localhost` and addresses"),
        ("PLAYGROUND", None, "`true`; behind RunPod's balancer `false`"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai/v2", "`https://api.runpod.ai/v2`"),
    ):
        assert getattr(read, name.lower()) == value, name
        assert word is None or words[name] == word, name


def test_every_choice_of_a_word_is_taken() -> None:
    for name, words in (
        ("PRECISION_MODE", ("auto", "bf16", "8bit", "4bit", "BF16")),
        ("VERIFY", ("sizes", "full")),
        ("RESPONSE_COMPAT", ("output_image_base64", "image", "image_base64", "image_url")),
        ("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR", "warn", "notset")),
    ):
        for word in words:
            assert getattr(settings.read({name: word}), name.lower()) is not None


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("MODEL", "MODEL_ID"), "tiny"),
        (("MODEL_DIR", "QWEN_HOME"), "/data"),
        (("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "hf_x"),
        (("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), "/cache"),
        (("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
        (("LOG_LEVEL", "RUNPOD_LOG_LEVEL"), "ERROR"),
    ],
)
def test_a_variable_goes_by_its_old_name_too(names: tuple[str, str], value: str) -> None:
    assert names in settings.list_variables()
    by_name, by_alias = (settings.read({name: value}) for name in names)
    assert by_name == by_alias != settings.read({})


@pytest.mark.parametrize("word", ["0", "false", "no", "off", "n", "f", "NO", "False"])
def test_offline_is_anything_but_a_no(word: str) -> None:
    assert settings.read({"HF_HUB_OFFLINE": word}).hf_hub_offline is False
    assert settings.read({"HF_HUB_OFFLINE": word + "x"}).hf_hub_offline is True


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1024", 1024),
        ("2kb", 2000),
        ("2 KB", 2000),
        ("3MB", 3_000_000),
        ("1 gb", 1_000_000_000),
        ("999999999 gb", 999_999_999 * 10**9),
    ],
)
def test_bytes_have_units_of_a_thousand(text: str, count: int) -> None:
    assert settings.read({"MAX_IMAGE_BYTES": text}).max_image_bytes == count


@pytest.mark.parametrize("text", ["2  KB", "2 KiB", "2.5 MB", "1234567890 kb", "KB", "-2 KB"])
def test_what_is_no_count_of_bytes_is_refused(text: str) -> None:
    assert set(faults(MAX_IMAGE_BYTES=text)) == {"MAX_IMAGE_BYTES"}


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.0.0.0/8:1", [("10.0.0.0/8", 1)]),
        ("10.0.0.0/8:65535", [("10.0.0.0/8", 65535)]),
        ("10.1.2.3:80, ::1:443", [("10.1.2.3/32", 80), ("::1/128", 443)]),
        ("[fd00::]/8:8080", [("fd00::/8", 8080)]),
    ],
)
def test_networks_are_a_cidr_and_a_port(text: str, networks: list[tuple[str, int]]) -> None:
    read = settings.read({"ALLOWED_IMAGE_NETWORKS": text}).allowed_image_networks
    assert [(str(network), port) for network, port in read] == networks


@pytest.mark.parametrize(
    ("address", "is_right"),
    [
        ("https://x.example", True),
        ("HTTP://x.example/a/b", True),
        ("https://x.example/a b", False),
        ("https://x.example/a@b", False),
        ("https:///a", False),
        ("https://", False),
        ("xhttps://x.example", False),
        ("https://x", True),
    ],
)
def test_an_address_has_a_host_and_no_user(address: str, *, is_right: bool) -> None:
    if is_right:
        assert settings.read({"HF_ENDPOINT": address}).hf_endpoint == address
    else:
        reported = {"HF_ENDPOINT": "must be an https:// address without a user name"}
        assert faults(HF_ENDPOINT=address) == reported


def test_the_home_of_weights_is_the_volume_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "VOLUME", tmp_path)
    assert settings.read({}).home == tmp_path / "models"
    monkeypatch.setattr(settings, "VOLUME", tmp_path / "none")
    assert settings.read({}).home == Path(tempfile.gettempdir()) / "worker-models"


def test_a_command_line_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "one")
    monkeypatch.setenv("VERIFY", "full")
    read = settings.read(instead={"MODEL": "two"})
    assert (read.model, read.verify) == (("two",), "full")
    assert settings.read({"MODEL": "three"}, instead={"VERIFY": "full"}).model == ("three",)


def test_where_we_run_is_known_in_a_wrong_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_PIXELS", "many")
    monkeypatch.delenv("RUNPOD_WEBHOOK_GET_JOB", raising=False)
    assert not settings.read_platform().on_platform
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", "https://x/job-take/1")
    assert settings.read_platform().on_platform
    assert settings.read_platform().max_pixels is None


def test_half_a_bucket_is_reported_by_the_first_that_is_there() -> None:
    assert faults(BUCKET_SECRET_ACCESS_KEY="verysecret", BUCKET_SESSION_TOKEN="token-x") == {
        "BUCKET_ENDPOINT_URL": "is required with BUCKET_SECRET_ACCESS_KEY",
        "BUCKET_ACCESS_KEY_ID": "is required with BUCKET_SECRET_ACCESS_KEY",
    }
    assert settings.read(BUCKET).bucket_endpoint_url == "https://bucket.example"


def test_the_faults_of_a_fused_lora_are_reported_together() -> None:
    wrong = {"LIGHTNING_FUSED": "1", "LIGHTNING_STEPS": "8,4", "USE_LIGHTNING_LORA": "0"}
    with pytest.raises(InvalidSettings) as refused:
        settings.read(wrong)
    assert [detail.message for detail in refused.value.details] == [
        "bakes one LoRA: give LIGHTNING_STEPS one count",
        "needs USE_LIGHTNING_LORA",
    ]


def test_the_secrets_are_known_by_their_type() -> None:
    assert {
        "api_keys",
        "hf_token",
        "runpod_api_key",
        "bucket_access_key_id",
        "bucket_secret_access_key",
        "bucket_session_token",
    } == settings.SECRETS


def test_what_is_no_secret_is_not_kept_out_of_the_log() -> None:
    """Such as a model's name, which messages need."""
    settings.read({"MODEL": "org/name", "HF_TOKEN": "hf_secret"})
    assert log.redact("org/name with hf_secret") == "org/name with [hidden]"


def test_a_token_of_a_file_is_kept_out_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_fromTheFile\n")
    settings.read({"HF_TOKEN_PATH": str(tmp_path / "token")})
    assert log.redact("with hf_fromTheFile") == "with [hidden]"


def test_a_wrong_token_in_a_file_is_reported_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("two words\n")
    reported = faults(HF_TOKEN_PATH=str(tmp_path / "token"))
    assert reported["HF_TOKEN_PATH"].startswith("must be a token alone")


@pytest.mark.parametrize(
    ("environ", "rows", "jobs"),
    [
        ({}, 1, 1),
        ({"PREFETCH": "1"}, 1, 2),
        ({"BATCH_SIZE": "4"}, 4, 4),
        ({"BATCH_SIZE": "4", "PREFETCH": "1"}, 4, 5),
        ({"BATCH_SIZE": "4", "PREFETCH": "1", "REFRESH_WORKER": "1"}, 1, 1),
    ],
    ids=str,
)
def test_a_job_is_taken_for_every_row_of_a_batch(
    environ: dict[str, str], rows: int, jobs: int
) -> None:
    chosen = settings.read(environ)
    assert (chosen.most_in_batch, chosen.jobs_at_once) == (rows, jobs)
