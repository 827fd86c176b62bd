"""The environment, read once into one frozen value; the only file that knows `os.environ`."""

import ipaddress
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from worker.errors import Detail, InvalidSettings

MB: Final = 1_000_000
VOLUME: Final = Path("/runpod-volume")

Network = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int]


def _words(value: Any) -> Any:
    return (
        tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value
    )


def _networks(value: Any) -> Any:
    """Read "127.0.0.0/8:8080,[::1]/128:80" as (network, port) pairs."""
    networks: list[Network] = []
    for word in _words(value):
        if not isinstance(word, str):
            return value
        cidr, _, port = word.rpartition(":")
        networks.append((ipaddress.ip_network(cidr.replace("[", "").replace("]", "")), int(port)))
    return tuple(networks)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Counts = Annotated[tuple[int, ...], BeforeValidator(_words)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_networks)]
Precision = Annotated[Literal["auto", "bf16", "8bit", "4bit", "fp32"], BeforeValidator(_lower)]


def _named(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Settings(BaseModel):
    """What the operator sets; a field is the variable of the same name in upper case.

    Sizes ending in `_bytes` are bytes (a plain number, or one with MB), `_gb` are 10^9 bytes, `_s`
    are seconds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    model: Words = Field((), validation_alias=_named("MODEL", "MODEL_ID"))
    model_revision: str | None = None
    model_path: Path | None = None
    model_dir: Path | None = Field(None, validation_alias=_named("MODEL_DIR", "QWEN_HOME"))
    hf_token: SecretStr | None = None
    hf_endpoint: str | None = None
    precision_mode: Precision = "auto"
    use_lightning_lora: bool = True
    lightning_steps: Counts = (8,)
    lightning_fused: bool = False

    download_workers: int = Field(8, ge=1, le=64)
    download_retries: int = Field(5, ge=0, le=100)
    download_stall_s: float = Field(60, gt=0)
    min_storage_free_gb: float = Field(2, ge=0)
    volume_size_gb: float | None = Field(None, gt=0)
    runpod_cache_dir: Path = VOLUME / "huggingface-cache" / "hub"
    verify: Literal["sizes", "full"] = "sizes"
    keep_source_weights: bool = False

    max_pixels: int | None = Field(None, ge=64 * 64)
    max_input_images: int = Field(3, ge=1, le=3)
    max_image_bytes: int = Field(20 * MB, ge=1024)
    max_image_pixels: int = Field(50_000_000, ge=256 * 256)
    max_images_per_request: int = Field(4, ge=1, le=4)
    max_reply_bytes: int = Field(18 * MB, ge=1024)
    allowed_image_hosts: Words = ()
    allow_http_images: bool = False
    allowed_image_networks: Networks = ()
    fetch_nameservers: Words = ()
    fetch_connect_s: float = Field(5, gt=0)
    fetch_total_s: float = Field(20, gt=0)
    job_deadline_s: float = Field(0, ge=0)

    bucket_endpoint_url: str | None = None
    bucket_access_key_id: SecretStr | None = None
    bucket_secret_access_key: SecretStr | None = None
    bucket_name: str | None = None
    bucket_prefix: str = ""
    bucket_region: str | None = None
    bucket_url_ttl_s: int = Field(7 * 24 * 3600, ge=60, le=7 * 24 * 3600)

    prefetch: bool = False
    png_metadata: bool = True
    response_compat: Literal["output_image_base64", "image", "image_base64", "image_url"] | None = (
        None
    )
    strict_input: bool = False
    refresh_worker: bool = False
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = (
        Field("INFO", validation_alias=_named("LOG_LEVEL", "RUNPOD_LOG_LEVEL"))
    )
    log_prompts: bool = False

    @model_validator(mode="after")
    def _bucket_is_whole(self) -> "Settings":
        bucket = {
            "BUCKET_ENDPOINT_URL": self.bucket_endpoint_url,
            "BUCKET_ACCESS_KEY_ID": self.bucket_access_key_id,
            "BUCKET_SECRET_ACCESS_KEY": self.bucket_secret_access_key,
        }
        missing = [name for name, value in bucket.items() if not value]
        if missing and len(missing) < len(bucket):
            raise ValueError(f"a bucket also needs {', '.join(missing)}")
        if self.lightning_fused and len(self.lightning_steps) != 1:
            raise ValueError("LIGHTNING_FUSED bakes one LoRA: give one count in LIGHTNING_STEPS")
        return self

    @property
    def on_platform(self) -> bool:
        """Whether this process was started by RunPod (the SDK's own test: a job-take address)."""
        return self.runpod_webhook_get_job is not None

    runpod_webhook_get_job: str | None = None

    @property
    def home(self) -> Path:
        """Where bundles and weights are kept: MODEL_DIR, else the volume, else a cache folder."""
        if self.model_dir is not None:
            return self.model_dir
        if VOLUME.is_dir():
            return VOLUME / "models"
        return Path(tempfile.gettempdir()) / "worker-models"


def where_we_run() -> Settings:
    """Read only what tells whether this is the platform: for a start whose environment is wrong."""
    return read({name: os.environ.get(name, "") for name in ("RUNPOD_WEBHOOK_GET_JOB",)})


def variables() -> tuple[tuple[str, ...], ...]:
    """Return every variable with its aliases, in the order of the fields."""
    names: list[tuple[str, ...]] = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = (
            tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (name.upper(),)
        )
        names.append(choices)
    return tuple(names)


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment (or a mapping like it); empty values count as not set.

    Raises InvalidSettings naming every wrong variable at once, without their values.
    """
    given = os.environ if environ is None else environ
    known: dict[str, str] = {}
    for name, names in zip(Settings.model_fields, variables(), strict=True):
        key = names[0] if len(names) > 1 else name
        for variable in names:
            if given.get(variable, "").strip():
                known[key] = given[variable].strip()
                break
    try:
        return Settings.model_validate(known)
    except ValidationError as error:
        details = [
            Detail(field=str(e["loc"][0]).upper() if e["loc"] else "BUCKET", message=e["msg"])
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise InvalidSettings(
            "; ".join(f"{d.field}: {d.message}" for d in details), details=details
        ) from None
