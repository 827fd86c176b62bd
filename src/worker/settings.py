"""The environment, read once into one frozen value; the only file that knows `os.environ`."""

import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from worker import log
from worker.errors import Detail, InvalidSettings
from worker.setting_values import (
    BEARER,
    LORA_KINDS,
    MB,
    Address,
    Bytes,
    Counts,
    Keys,
    LightningPlace,
    LogLevel,
    LoraKinds,
    Loras,
    Networks,
    Offline,
    Origins,
    Place,
    Port,
    PrecisionMode,
    PublicAddress,
    ServeMode,
    StyleWord,
    Switch,
    Token,
    TransformerPlace,
    UrlPath,
    Words,
    unquote,
)

# For torch, by the variable's name and an older one. Pictures differ in size: segments that grow do
# not fragment. And cuDNN's attention builds a plan for each prompt length: 36 ms on an H100, with
# this as without it in torch 2.11; other versions are not measured.
LIBRARIES: Final = {
    ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"): "expandable_segments:True",
    ("TORCH_CUDNN_SDPA_AVOID_RECOMPILE",): "1",
}
VOLUME: Final = Path("/runpod-volume")
# What shows where this process runs and how it is called: read even where the rest is wrong.
PLACE_VARIABLES: Final = (
    "RUNPOD_WEBHOOK_GET_JOB",
    "RUNPOD_ENDPOINT_ID",
    "RUNPOD_POD_ID",
    "SERVE",
    "HOST",
    "PORT",
    "PORT_HEALTH",
    "HEALTH_CHECK_PATH",
    "API_KEYS",
)
# What a caller of RunPod's queue needs.
CALLER_VARIABLES: Final = (
    "RUNPOD_API_KEY",
    "RUNPOD_ENDPOINT_BASE_URL",
    "ALLOWED_HOSTS",
    "PORT",
    "LOG_LEVEL",
)
LONGEST_TOKEN: Final = 4096
DEFAULT_PORT: Final = 8000
# What RunPod's queue accepts of one job.
MOST_QUEUED_BYTES: Final = 10 * MB


def _declare(
    default: Any,
    meaning: str,
    *,
    names: Sequence[str] = (),
    shown: str | None = None,
    **limits: Any,
) -> Any:
    """Declare a variable; `meaning` and `shown` (its default in words) are what README says.

    `names` are the variable's own and its aliases, where it has any.
    """
    return Field(
        default,
        description=meaning,
        validation_alias=AliasChoices(*names) if names else None,
        json_schema_extra=None if shown is None else {"shown": shown},
        **limits,
    )


class Settings(BaseModel):
    """What the operator sets; a field is the variable of the same name in upper case.

    Values ending in `_bytes` are bytes (a plain number, or one with KB, MB or GB), in `_gb` 10^9
    bytes, in `_s` seconds.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    model: Words = _declare(
        (),
        "models to serve, comma-separated: names of the catalogue, repositories (org/name or"
        " org/name@revision), or a folder",
        names=("MODEL", "MODEL_ID"),
        shown="`qwen-image-edit-2511`; off RunPod without a GPU `tiny`",
    )
    model_revision: str | None = _declare(
        None, "the revision of that one model", shown="the newest"
    )
    model_path: Place | None = _declare(None, "a folder with the model's weights")
    model_dir: Place | None = _declare(
        None,
        "where bundles and weights are kept",
        names=("MODEL_DIR", "QWEN_HOME"),
        shown="`/runpod-volume/models` with a volume, else a temporary folder",
    )
    hf_token: Token | None = _declare(
        None,
        "token for gated or private repositories",
        names=("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    )
    hf_token_path: Place | None = _declare(None, "a file with the token, if `HF_TOKEN` is not set")
    hf_endpoint: Address | None = _declare(None, "another hub", shown="the public hub")
    hf_home: Place | None = _declare(None, "Hugging Face's folder; its cache is `hub` in it")
    hf_hub_cache: Place | None = _declare(
        None,
        "Hugging Face's cache, searched for weights; nothing is written there",
        names=("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
        shown="`hub` in `HF_HOME`",
    )
    hf_hub_offline: Offline = _declare(
        False,
        "contact no hub: what is not on this machine is refused at once",
        names=("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    )
    precision_mode: PrecisionMode = _declare(
        "auto", "`auto` (by the device and its free memory), `bf16`, `8bit`, `4bit`"
    )
    use_lightning_lora: bool = _declare(True, "load the Lightning LoRA and use it by default")
    lightning_steps: Counts = _declare(
        (8,),
        "`8`, `4` or `8,4`: the counts kept warm, the first is the default",
        shown="`8`; tiny `8,4`",
    )
    lightning: LightningPlace | None = _declare(
        None,
        "the Lightning LoRA of that one model: `org/repository/file-{n}steps.safetensors`",
        shown="the catalogue's, or the model's own",
    )
    transformer: TransformerPlace | None = _declare(
        None,
        "another transformer for that one model: `org/repository[/folder]`, as diffusers saves it",
        shown="the model's own",
    )
    lightning_fused: bool = _declare(
        False, "bake that one LoRA into the weights: faster, serves nothing else"
    )

    loras: Loras = _declare(
        (), "LoRAs that callers may name: `name=org/repository/file[@revision],...`"
    )
    lora_dir: Place | None = _declare(
        None, "a folder of LoRAs that callers may name: `NAME.safetensors`, or a folder `NAME`"
    )
    lora_sources: LoraKinds | None = _declare(
        None,
        "which LoRAs callers may request: `names` (of `LORAS` and `LORA_DIR`), `hub`, `urls`",
        shown="`names`; off RunPod `names,hub,urls`",
    )
    lora_hub_token: bool = _declare(
        False, "fetch callers' LoRAs from the hub with `HF_TOKEN`, so private ones too"
    )
    max_loras: int = _declare(3, "maximum LoRAs per job", ge=0, le=8)
    max_lora_bytes: Bytes = _declare(1500 * MB, "maximum bytes per LoRA", ge=1024)
    lora_fetch_s: float = _declare(300, "seconds for all LoRAs of a job to arrive", gt=0)
    lora_cache_gb: float = _declare(
        10,
        "GB of fetched LoRAs that stay in `MODEL_DIR`; the least recently used is evicted",
        gt=0,
    )

    download_workers: int = _declare(8, "parallel ranges of a download", ge=1, le=64)
    download_retries: int = _declare(5, "attempts after the first", ge=0, le=100)
    download_stall_s: float = _declare(60, "seconds without a byte that count as a failure", gt=0)
    min_storage_free_gb: float = _declare(2, "GB that stay free on the disk", ge=0)
    volume_size_gb: float | None = _declare(
        None, "the volume's quota in GB, if the file system does not report it", gt=0
    )
    runpod_cache_dir: Place = _declare(
        VOLUME / "huggingface-cache" / "hub", "where RunPod's model cache is"
    )
    verify: Literal["sizes", "full"] = _declare(
        "sizes", "how a bundle is checked at each start: `sizes`, `full` (every byte)"
    )
    keep_source_weights: bool = _declare(False, "keep the published weights after preparation")

    max_pixels: int | None = _declare(
        None, "maximum pixels per picture", shown="by the device's memory", ge=64 * 64
    )
    shrink: bool = _declare(
        False, "reduce a size over the limit in proportion, and say so, instead of refusing it"
    )
    max_input_images: int = _declare(4, "maximum references per job", ge=1, le=4)
    max_image_bytes: Bytes = _declare(20 * MB, "maximum bytes per reference", ge=1024)
    max_image_pixels: int = _declare(
        25_000_000,
        "maximum pixels per reference; half of it for a WEBP; a larger JPEG is read at a fraction",
        ge=256 * 256,
    )
    max_images_per_request: int = _declare(4, "maximum pictures per job", ge=1, le=4)
    max_reply_bytes: Bytes = _declare(18 * MB, "maximum bytes per reply", ge=1024)
    allowed_image_hosts: Words = _declare(
        (), "hosts that image URLs may name, also as `*.example.com`", shown="any public host"
    )
    allow_http_images: bool = _declare(False, "allow image URLs without TLS")
    allowed_image_networks: Networks = _declare(
        (), "`CIDR:port` list, the only non-public addresses allowed; logged at the start"
    )
    fetch_nameservers: Words = _declare(
        (), "name servers (`address:port`) for image URLs", shown="the system's"
    )
    fetch_connect_s: float = _declare(5, "seconds to connect to an image's site", gt=0)
    fetch_total_s: float = _declare(20, "seconds for all references of a job", gt=0)
    job_deadline_s: float = _declare(
        0, "stop a job between two steps after these seconds; 0: never", ge=0
    )

    bucket_endpoint_url: Address | None = _declare(None, "the bucket that pictures go to")
    bucket_access_key_id: SecretStr | None = _declare(None, "its access key")
    bucket_secret_access_key: SecretStr | None = _declare(None, "its secret key")
    bucket_session_token: SecretStr | None = _declare(
        None, "the session token of temporary keys; the pictures' URLs expire with it"
    )
    bucket_name: str | None = _declare(None, "its name, if the endpoint does not contain it")
    bucket_style: StyleWord = _declare(
        "auto",
        "where its name goes in addresses: `path` (after the host), `virtual` (in front of it),"
        " `auto` (by the host: as its store is known to accept it, else `path`)",
    )
    bucket_prefix: str = _declare(
        "", "what the keys of its objects begin with; several slashes in a row count as one"
    )
    bucket_region: str | None = _declare(
        None, "its region", shown="by the endpoint's host, else `us-east-1`"
    )
    bucket_public_url: PublicAddress | None = _declare(
        None, "where its objects are public: replies carry that address, unsigned"
    )
    bucket_url_ttl_s: int = _declare(
        7 * 24 * 3600, "seconds that a picture's URL is valid", ge=60, le=7 * 24 * 3600
    )

    prefetch: bool = _declare(
        False,
        "take the next job while one runs: no idle second between them, but it waits here with"
        " its clock running",
    )
    batch_size: int = _declare(
        1,
        "1-8: how many pictures of equal jobs share each step; 1: every picture alone",
        ge=1,
        le=8,
    )
    batch_timeout_ms: int = _declare(
        0, "milliseconds that a batch waits for more jobs; 0: it takes what waits", ge=0, le=60_000
    )
    batch_max_pixels: int = _declare(
        4 * 512 * 512,
        "maximum pixels of all pictures of a batch, by default 4 of 512 x 512: larger ones share"
        " with fewer, or are alone",
        ge=64 * 64,
    )
    compile: Switch = _declare(
        "auto",
        "`auto`: on a GPU, compile the denoiser's blocks at each start, and run them as they are"
        " where that fails; `off`",
    )
    compile_cache: Switch = _declare(
        "auto",
        "`auto`: keep what was compiled in MODEL_DIR, for the next start of the same kind; it is"
        " code that starts run: `off` where others may write there",
    )
    lightning_merge: Switch = _declare(
        "auto",
        "`auto`: on a GPU, add the Lightning LoRA to the weights: in bf16 once, where one model"
        " leaves room for a second copy; in 4bit while they are unpacked; `off`",
    )
    png_metadata: bool = _declare(True, "write into a picture's file how it was made")
    response_compat: (
        Literal[
            "output_image_base64", "image", "image_base64", "image_url", "audio_base64", "audio_url"
        ]
        | None
    ) = _declare(
        None,
        "`output_image_base64`, `image`, `image_base64` or `image_url`: the top-level key that"
        " takes the first picture, for old callers; `audio_base64` or `audio_url`: the speech",
    )
    strict_input: bool = _declare(False, "refuse unknown fields instead of warning")
    refresh_worker: bool = _declare(False, "replace the worker after each job")
    log_level: LogLevel = _declare(
        "INFO",
        "`DEBUG`, `INFO`, `WARNING`, `ERROR`",
        names=("LOG_LEVEL", "RUNPOD_LOG_LEVEL"),
    )
    log_prompts: bool = _declare(False, "write prompts into the log")

    serve: ServeMode = _declare(
        "auto",
        "how jobs come in: `queue` (RunPod's), `http`, `auto` (`http` if `PORT` or `PORT_HEALTH` is"
        " set and RunPod's queue is not)",
    )
    host: str | None = _declare(
        None, "the address that HTTP is served on", shown="`127.0.0.1`; on RunPod `0.0.0.0`"
    )
    port: Port | None = _declare(None, "its port", shown="`8000`; on RunPod `80`")
    port_health: Port | None = _declare(
        None, "a second port, for health checks", shown="the same as `PORT`"
    )
    health_check_path: UrlPath = _declare("/ping", "the path of health checks")
    http_queue: int = _declare(
        8, "how many HTTP jobs may wait; more are refused with 429", ge=0, le=1000
    )
    max_body_bytes: Bytes = _declare(30 * MB, "maximum bytes of an HTTP request", ge=1024)
    api_keys: Keys = _declare(
        (),
        "keys of at least 16 characters, comma-separated, one of which each HTTP request must have;"
        " `none`: on any address without a key",
        shown="none, which is allowed on `127.0.0.1` and behind RunPod's load balancer alone",
    )
    cors_origins: Origins = _declare(
        (), "origins whose web pages may call the door, as in `https://example.com`"
    )
    allowed_hosts: Words = _declare(
        (),
        "names by which a door without a key may be called",
        shown="`localhost` and addresses",
    )
    playground: bool | None = _declare(
        None, "serve a page for browsers at `/`", shown="`true`; behind RunPod's balancer `false`"
    )
    runpod_api_key: SecretStr | None = _declare(
        None,
        "the key with which `python -m worker playground` calls an endpoint; nothing else uses it",
    )
    runpod_endpoint_base_url: str = _declare(
        "https://api.runpod.ai/v2", "where it finds the endpoint"
    )
    runpod_webhook_get_job: str | None = _declare(
        None, "set by RunPod; shows the worker that it runs there"
    )
    runpod_endpoint_id: str | None = _declare(None, "set by RunPod for the workers of an endpoint")
    runpod_pod_id: str | None = _declare(None, "set by RunPod for workers and Pods")

    @property
    def has_queue(self) -> bool:
        """Whether RunPod's queue sends jobs (the SDK's own test: a job-take address)."""
        return self.runpod_webhook_get_job is not None

    @property
    def on_platform(self) -> bool:
        """Whether this is a worker that RunPod starts and stops, with a queue or without."""
        return self.has_queue or self.is_load_balanced

    @property
    def is_load_balanced(self) -> bool:
        """Whether RunPod's load balancer stands in front of this worker."""
        return self.runpod_endpoint_id is not None and not self.has_queue and self.serves_http

    @property
    def serves_http(self) -> bool:
        """Whether jobs come in by HTTP."""
        if self.serve != "auto":
            return self.serve == "http"
        return not self.has_queue and (self.port is not None or self.port_health is not None)

    @property
    def has_playground(self) -> bool:
        """Whether a page for browsers is served: behind RunPod's balancer none could load it."""
        return not self.is_load_balanced if self.playground is None else self.playground

    @property
    def http_host(self) -> str:
        """The address that HTTP is served on."""
        on_runpod = self.runpod_endpoint_id is not None or self.runpod_pod_id is not None
        return self.host or ("0.0.0.0" if on_runpod else "127.0.0.1")  # noqa: S104 - inside RunPod's network, or with a key

    @property
    def http_port(self) -> int:
        """The port that HTTP is served on."""
        on_runpod = self.runpod_endpoint_id is not None or self.runpod_pod_id is not None
        return self.port or (80 if on_runpod else DEFAULT_PORT)

    @property
    def is_loopback(self) -> bool:
        """Whether HTTP is served on this machine alone."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.http_host.strip("[]")).is_loopback
        return self.http_host.lower() == "localhost"

    @property
    def http_keys(self) -> tuple[str, ...]:
        """The keys of which an HTTP request must have one; none: it needs none."""
        keys = tuple(key.get_secret_value() for key in self.api_keys)
        return () if keys == ("none",) else keys

    @property
    def most_in_batch(self) -> int:
        """How many pictures may share a step: one where the pod ends with its first job."""
        return 1 if self.refresh_worker else self.batch_size

    @property
    def jobs_at_once(self) -> int:
        """How many jobs are taken at once.

        With REFRESH_WORKER it is one: another would be lost with the pod, which stops at the first
        one's answer.
        """
        return 1 if self.refresh_worker else self.batch_size + self.prefetch

    @property
    def lora_kinds(self) -> tuple[str, ...]:
        """Which LoRAs callers may request: LORA_SOURCES, else names, and all off the platform."""
        if self.lora_sources is not None:
            return self.lora_sources
        return LORA_KINDS[:1] if self.on_platform else LORA_KINDS

    @property
    def expects_loras(self) -> bool:
        """Whether the operator says which LoRAs jobs may bring: memory is planned for them."""
        return bool(self.lora_kinds) and any((self.loras, self.lora_dir, self.lora_sources))

    @property
    def hub_cache(self) -> Path | None:
        """Where Hugging Face's cache is expected: HF_HUB_CACHE, else `hub` in HF_HOME."""
        if self.hf_hub_cache is None and self.hf_home is not None:
            return self.hf_home / "hub"
        return self.hf_hub_cache

    @property
    def home(self) -> Path:
        """Where bundles and weights are kept: MODEL_DIR, else the volume, else a cache folder."""
        if self.model_dir is not None:
            return self.model_dir
        if VOLUME.is_dir():
            return VOLUME / "models"
        return Path(tempfile.gettempdir()) / "worker-models"


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


def _list_secrets(value: Any) -> list[str]:
    """Return the texts of a secret or of several."""
    many = value if isinstance(value, tuple) else (value,)
    return [one.get_secret_value() for one in many if isinstance(one, SecretStr)]


SECRETS: Final = frozenset(
    name for name, field in Settings.model_fields.items() if _is_secret(field.annotation)
)


def fill_environment() -> None:
    """Set what torch reads from the environment at its import, where the operator has not."""
    for (name, *older), value in LIBRARIES.items():
        if not any(other in os.environ for other in older):
            os.environ.setdefault(name, value)


def read_platform(instead: Mapping[str, str] | None = None) -> Settings:
    """Read only where this is and how it is called: for a start whose environment is wrong.

    Of these variables, those that are wrong themselves are left out.
    """
    given = {name: os.environ.get(name, "") for name in PLACE_VARIABLES} | dict(instead or {})
    while True:
        try:
            return read(given)
        except InvalidSettings as error:
            for detail in error.details:
                given.pop(detail.field, None)
            if any(detail.field == "API_KEYS" for detail in error.details):
                given["HOST"] = "127.0.0.1"  # a door whose keys are not known is opened to nobody


def read_caller(port: int | None = None) -> Settings:
    """Read what a program needs that calls an endpoint and listens on loopback alone.

    `port` takes precedence over PORT. Raises InvalidSettings.
    """
    given = {name: os.environ.get(name, "") for name in CALLER_VARIABLES}
    own = {"SERVE": "http", "HOST": "127.0.0.1", "MAX_BODY_BYTES": str(MOST_QUEUED_BYTES)}
    return read({**given, **own, **({} if port is None else {"PORT": str(port)})})


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table of settings, as README shows it."""

    names: tuple[str, ...]
    meaning: str
    default: str


def list_settings() -> tuple[Variable, ...]:
    """Return every variable with its aliases, meaning and default, in the order of the fields."""
    return tuple(
        Variable(
            names, info.description or "", _show_default(name, info.default, info.json_schema_extra)
        )
        for names, (name, info) in zip(list_variables(), Settings.model_fields.items(), strict=True)
    )


def _show_default(name: str, value: Any, extra: Any) -> str:
    if extra:
        return str(extra["shown"])
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_bytes"):
        return f"`{value // MB} MB`"
    return f"`{value}`"


def list_variables() -> tuple[tuple[str, ...], ...]:
    """Return every variable's name and its aliases, in the order of the fields."""
    names: list[tuple[str, ...]] = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = (
            tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (name.upper(),)
        )
        names.append(choices)
    return tuple(names)


def read(
    environ: Mapping[str, str] | None = None, *, instead: Mapping[str, str] | None = None
) -> Settings:
    """Read the environment (or a mapping like it); empty values count as not set.

    `instead` takes precedence: a command line's options, by the variables' names. Where a variable
    has several names, the first that is set counts. The secrets in all of them are kept
    out of the log from here on. Raises InvalidSettings naming every wrong variable at once, without
    their values.
    """
    given = {**(os.environ if environ is None else environ), **(instead or {})}
    known: dict[str, str] = {}
    written: dict[str, str] = {}  # the variable that was set, by the name pydantic reports
    for name, names in zip(Settings.model_fields, list_variables(), strict=True):
        key = names[0] if len(names) > 1 else name
        entries = [(each, text) for each in names if (text := unquote(given.get(each, "")))]
        if name in SECRETS:
            log.hide(*(BEARER.sub("", text) for _, text in entries))
        if entries:
            written[key], known[key] = entries[0]
    details = _read_token_file(known, written)
    try:
        settings = Settings.model_validate(known)
    except ValidationError as error:
        for fault in error.errors():
            key = str(fault["loc"][0])
            known.pop(key, None)
            details.append(Detail(written[key], _find_reason(fault["msg"])))
        settings = Settings.model_validate(known)
    log.hide(*(text for name in SECRETS for text in _list_secrets(getattr(settings, name))))
    details += _find_contradictions(settings)
    if details:
        message = "; ".join(f"{detail.field}: {detail.message}" for detail in details)
        raise InvalidSettings(message, details=details)
    return settings


def _read_token_file(known: dict[str, str], written: dict[str, str]) -> list[Detail]:
    """Take the token from the file that HF_TOKEN_PATH names, where no variable has one."""
    place = known.get("hf_token_path")
    if place is None or "HF_TOKEN" in known:
        return []
    token = _show_text(place)
    if token is None:
        return [Detail("HF_TOKEN_PATH", "must be a file that can be read, with a token in it")]
    known["HF_TOKEN"], written["HF_TOKEN"] = token, "HF_TOKEN_PATH"
    return []


def _show_text(place: str) -> str | None:
    """Return the text of a small file; None when it cannot be read: a pipe could block."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = Path(place).expanduser()
        if file.is_file() and file.stat().st_size <= LONGEST_TOKEN:
            return file.read_text(encoding="utf-8")
    return None


def _find_reason(message: str) -> str:
    """Put pydantic's message into the words of our other messages."""
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _find_contradictions(settings: Settings) -> list[Detail]:
    """Return what is wrong with settings that only make sense together."""
    bucket = {
        "BUCKET_ENDPOINT_URL": settings.bucket_endpoint_url,
        "BUCKET_ACCESS_KEY_ID": settings.bucket_access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": settings.bucket_secret_access_key,
    }
    extras = {
        "BUCKET_SESSION_TOKEN": settings.bucket_session_token,
        "BUCKET_PUBLIC_URL": settings.bucket_public_url,
    }
    given = [name for name, value in {**bucket, **extras}.items() if value is not None]
    details = [
        Detail(name, f"is required with {given[0]}")
        for name, value in bucket.items()
        if given and value is None
    ]
    if settings.lightning_fused and len(settings.lightning_steps) != 1:
        details.append(Detail("LIGHTNING_FUSED", "bakes one LoRA: give LIGHTNING_STEPS one count"))
    if settings.lora_cache_gb * 1000 * MB < settings.max_loras * settings.max_lora_bytes:
        message = "must have room for MAX_LORAS x MAX_LORA_BYTES, the LoRAs of one job"
        details.append(Detail("LORA_CACHE_GB", message))
    if settings.lightning_fused and not settings.use_lightning_lora:
        details.append(Detail("LIGHTNING_FUSED", "needs USE_LIGHTNING_LORA"))
    is_guarded = settings.api_keys or settings.is_loopback or settings.is_load_balanced
    if settings.serves_http and not is_guarded:
        message = "is required to serve HTTP on another address than 127.0.0.1; none: for anybody"
        details.append(Detail("API_KEYS", message))
    return details
