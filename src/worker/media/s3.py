"""Signed addresses of an object in any S3-compatible store; signing needs no network."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

from worker.errors import BucketUnusable, WorkerError
from worker.media.address import parse_address
from worker.media.stores import UNKNOWN_STORE, Store, Style, identify_store
from worker.media.url import encode_host
from worker.setting_values import BucketStyle
from worker.settings import Settings

SAFE: Final = "/-_.~"
MAX_TTL_S: Final = 7 * 24 * 3600  # the longest that signature version 4 allows
# A private store called s3.DOMAIN, with a label before it: the bucket, unless one is given
# otherwise.
BUCKET_BEFORE_S3: Final = re.compile(r"[^.]+\.s3[.-].+")
HOST_LABELS: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


def find_region(host: str) -> str:
    """Return the region to sign for when none is set; us-east-1 is what most stores take."""
    return identify_store(host.partition(":")[0]).region


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects go; `endpoint` is the address of the store, or of the bucket itself.

    The bucket may be given by name, before the endpoint's host, or as the endpoint's path. Where
    its name goes in an object's address is by `style` after the host ("path"), in front of it
    ("virtual"), or where its store is known to accept it ("auto"); an endpoint whose host is the
    bucket's own stays as it is. Slashes that follow each other count as one, since stores disagree
    about names with nothing between two slashes.

    Raises ValueError if the bucket is given nowhere or cannot be addressed in its style, if a part
    of its path is "." or "..", or if the endpoint is not an http address.
    """

    endpoint: str = field(repr=False)
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    name: str | None = None
    region: str | None = None
    prefix: str = ""
    session_token: str | None = field(default=None, repr=False)
    style: BucketStyle = "auto"

    def __post_init__(self) -> None:
        split = urlsplit(self.endpoint)
        if split.scheme not in {"https", "http"} or not split.hostname or split.query:
            raise ValueError("the endpoint must be https://host")
        named = (
            self.name or self._store.bucket or split.path.strip("/") not in {"", self._store.base}
        )
        if not named and not BUCKET_BEFORE_S3.fullmatch(split.hostname):
            raise ValueError("the bucket has no name")
        parts = "/".join((split.path, self.name or "", self.prefix)).split("/")
        if not {".", ".."}.isdisjoint(parts):
            raise ValueError("no part of its path may be . or ..")
        if self.style == "virtual" and self._style == "host only":
            if parse_address(split.hostname) is not None:
                raise ValueError("an address of digits has no virtual hosts")
            name, _ = self._split_name()
            if name and not HOST_LABELS.fullmatch(name):
                raise ValueError("its name cannot be part of a host's")

    @property
    def _store(self) -> Store:
        return identify_store(urlsplit(self.endpoint).hostname or "")

    @property
    def _style(self) -> Style:
        if self._store.bucket is not None or self.style == "path":
            return "path"
        return "host only" if self.style == "virtual" else self._store.style

    @property
    def signing_region(self) -> str:
        """The region that requests are signed for."""
        return self.region or self._store.region

    def _split_name(self) -> tuple[str, str]:
        """Return the bucket's name, empty if the host has it, and the rest of the path."""
        path, name = _normalise(urlsplit(self.endpoint).path), _normalise(self.name or "")
        if self._store.bucket is not None:
            # If another name is given too, the keys begin with it, as with RunPod's SDK.
            name = "" if name.lower() == self._store.bucket else name
        elif self._style == "host only" and not name:
            name, _, path = path.partition("/")
        return name, "" if path == name else path

    def make_address(self, key: str) -> str:
        """Return the object's address, unsigned, in the style that the store expects."""
        split, style = urlsplit(self.endpoint), self._style
        host, (name, path) = _format_like_request(split.netloc), self._split_name()
        if name and (style == "host only" or (style == "host" and "." not in name)):
            is_before = self._store is UNKNOWN_STORE and host.startswith(f"{name}.")
            host, name = host if is_before else f"{name}.{host}", ""
        inside = quote("/".join(filter(None, (path, name))), safe=SAFE)
        return f"{split.scheme}://" + "/".join(filter(None, (host, inside, self.make_path(key))))

    def make_path(self, key: str) -> str:
        """Return an object's path within the bucket: the prefix and `key`, percent-encoded."""
        return quote(_normalise(f"{self.prefix}/{key}"), safe=SAFE)

    def sign(self, method: str, key: str, ttl_s: int, content_type: str | None = None) -> str:
        """Return an address that allows `method` on the object for `ttl_s` seconds.

        Signature version 4 in the query, payload unsigned and without checksums: every store
        accepts that. A `content_type` is signed too and must then be sent; a session token goes
        into the query. The first call imports botocore (0.2 s): call it off the event loop.
        """
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - only workers with a bucket pay
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - the same
        from botocore.credentials import Credentials  # noqa: PLC0415 - the same

        request = AWSRequest(method=method, url=self.make_address(key))
        if content_type:
            request.headers["Content-Type"] = content_type
        S3SigV4QueryAuth(
            Credentials(self.access_key_id, self.secret_access_key, self.session_token),
            "s3",
            self.signing_region,
            expires=min(ttl_s, MAX_TTL_S),
        ).add_auth(request)
        return str(request.url)


@dataclass(frozen=True, slots=True)
class CallersBucket:
    """The bucket that a job brings, as its door read it; never trusted.

    `bucket` is where objects go, or what is wrong with what was given. `endpoint_field` is the
    caller's name for its address; `warnings` are about the keys that have no meaning.
    """

    bucket: Bucket | WorkerError
    endpoint_field: str
    warnings: tuple[str, ...] = ()

    def require(self) -> Bucket:
        """Return the bucket; raise what is wrong with it."""
        if isinstance(self.bucket, WorkerError):
            raise self.bucket
        return self.bucket


def _normalise(path: str) -> str:
    """Return a path without slashes around it or next to each other."""
    return "/".join(filter(None, path.split("/")))


def _format_like_request(authority: str) -> str:
    """Return the host and port that a request will name, since the signature covers them."""
    try:
        return encode_host(authority)
    except UnicodeError:
        return authority


def read_own_bucket(settings: Settings) -> Bucket | None:
    """Return the operator's bucket (BUCKET_*), None when there is none.

    Raises BucketUnusable when it is incomplete.
    """
    endpoint = settings.bucket_endpoint_url
    access, secret = settings.bucket_access_key_id, settings.bucket_secret_access_key
    token = settings.bucket_session_token
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
            style=settings.bucket_style,
            session_token=None if token is None else token.get_secret_value(),
        )
    except ValueError as error:
        raise BucketUnusable(f"this endpoint's bucket is not set up: {error}") from None
