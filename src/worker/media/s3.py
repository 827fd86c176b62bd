"""Signed addresses of an object in any S3-compatible store; signing needs no network."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

from worker.errors import DeliveryFailed
from worker.settings import Settings

# Stores that want the bucket in front of the host's name; all others take it as the path's start.
VIRTUAL_STYLE: Final = (".amazonaws.com", ".aliyuncs.com", ".myqcloud.com")
BUCKET_IN_HOST: Final = re.compile(r"[^.]+\.(?:s3[.-]|oss-|cos\.|[a-z0-9]+\.digitaloceanspaces\.)")
# Signatures name a region; the host's name of these stores tells it.
REGION_IN_HOST: Final = (
    re.compile(
        r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z0-9-]+)\."
        r"(?:amazonaws\.com|wasabisys\.com|backblazeb2\.com|scw\.cloud|io\.cloud\.ovh\.net)"
    ),
    re.compile(r"(?:^|\.)([a-z0-9]+)\.digitaloceanspaces\.com"),
    re.compile(r"(?:^|\.)cos\.([a-z0-9-]+)\.myqcloud\.com"),
)
RUNPOD_VOLUME: Final = re.compile(r"s3api-([a-z0-9-]+)\.runpod\.io")
MAX_TTL_S: Final = 7 * 24 * 3600  # the longest that signature version 4 allows


def region_of(host: str) -> str:
    """Return the region to sign for when none is set; us-east-1 is what most stores take."""
    for pattern in REGION_IN_HOST:
        if found := pattern.search(host):
            return found[1]
    if found := RUNPOD_VOLUME.match(host):
        return found[1].upper()
    return "auto" if host.endswith(".r2.cloudflarestorage.com") else "us-east-1"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects go; `endpoint` is the address of the store, or of the bucket itself.

    The bucket may be given by name, as the first label of the endpoint's host, or as its path.
    Raises ValueError when it is given nowhere, or the endpoint is no http address.
    """

    endpoint: str = field(repr=False)
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    name: str | None = None
    region: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        split = urlsplit(self.endpoint)
        if split.scheme not in {"https", "http"} or not split.netloc or split.query:
            raise ValueError("the endpoint must be https://host")
        path = split.path.strip("/")
        if not self.name and not path and not BUCKET_IN_HOST.match(split.netloc.lower()):
            raise ValueError("the bucket has no name")

    def address(self, key: str) -> str:
        """Return the object's address, unsigned, in the style that the store wants."""
        split = urlsplit(self.endpoint)
        host, path, name = split.netloc, split.path.strip("/"), self.name or ""
        if path == name or host.startswith(f"{name}."):
            name = ""
        elif name and host.lower().endswith(VIRTUAL_STYLE) and "." not in name:
            host, name = f"{name}.{host}", ""
        parts = filter(None, (path, name, self.prefix.strip("/"), key))
        return f"{split.scheme}://{host}/" + quote("/".join(parts), safe="/-_.~")

    def signed(self, method: str, key: str, ttl_s: int, content_type: str | None = None) -> str:
        """Return an address that allows `method` on the object for `ttl_s` seconds.

        Signature version 4 in the query, payload unsigned and without checksums: every store takes
        that. A `content_type` is signed too and must then be sent. The first call imports botocore
        (0.2 s): call it off the event loop.
        """
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - only workers with a bucket pay
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - the same
        from botocore.credentials import Credentials  # noqa: PLC0415 - the same

        request = AWSRequest(method=method, url=self.address(key))
        if content_type:
            request.headers["Content-Type"] = content_type
        host = urlsplit(self.endpoint).netloc.lower()
        S3SigV4QueryAuth(
            Credentials(self.access_key_id, self.secret_access_key),
            "s3",
            self.region or region_of(host),
            expires=min(ttl_s, MAX_TTL_S),
        ).add_auth(request)
        return str(request.url)


def own_bucket(settings: Settings) -> Bucket | None:
    """Return the operator's bucket (BUCKET_*), None when there is none.

    Raises DeliveryFailed when it is not whole.
    """
    endpoint = settings.bucket_endpoint_url
    access, secret = settings.bucket_access_key_id, settings.bucket_secret_access_key
    if endpoint is None or access is None or secret is None:
        return None
    try:
        return Bucket(
            endpoint=endpoint,
            access_key_id=access.get_secret_value(),
            secret_access_key=secret.get_secret_value(),
            name=settings.bucket_name,
            region=settings.bucket_region,
            prefix=settings.bucket_prefix,
        )
    except ValueError as error:
        raise DeliveryFailed(f"this endpoint's bucket is not set up: {error}") from None
