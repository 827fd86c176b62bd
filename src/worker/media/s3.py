"""Signed addresses of an object in any S3-compatible store; signing needs no network."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

from worker.errors import BucketUnusable, WorkerError
from worker.media.stores import Store, identify_store
from worker.media.url import encode_host
from worker.settings import Settings

SAFE: Final = "/-_.~"
MAX_TTL_S: Final = 7 * 24 * 3600  # the longest that signature version 4 allows
# A private store called s3.DOMAIN, with a label before it: the bucket, unless one is given
# otherwise.
BUCKET_BEFORE_S3: Final = re.compile(r"[^.]+\.s3[.-].+")


def find_region(host: str) -> str:
    """Return the region to sign for when none is set; us-east-1 is what most stores take."""
    return identify_store(host.partition(":")[0]).region


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects go; `endpoint` is the address of the store, or of the bucket itself.

    The bucket may be given by name, before the endpoint's host if its store is known to accept it
    there, or as the endpoint's path. Raises ValueError if it is given nowhere, or the endpoint is
    not an http address.
    """

    endpoint: str = field(repr=False)
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    name: str | None = None
    region: str | None = None
    prefix: str = ""
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        split = urlsplit(self.endpoint)
        if split.scheme not in {"https", "http"} or not split.hostname or split.query:
            raise ValueError("the endpoint must be https://host")
        named = (
            self.name or self._store.bucket or split.path.strip("/") not in {"", self._store.base}
        )
        if not named and not BUCKET_BEFORE_S3.fullmatch(split.hostname):
            raise ValueError("the bucket has no name")

    @property
    def _store(self) -> Store:
        return identify_store(urlsplit(self.endpoint).hostname or "")

    def make_address(self, key: str) -> str:
        """Return the object's address, unsigned, in the style that the store expects."""
        split, style, name = urlsplit(self.endpoint), self._store.style, self.name or ""
        host, path = _format_like_request(split.netloc), split.path.strip("/")
        if self._store.bucket is not None:
            # If another name is given too, the keys begin with it, as with RunPod's SDK.
            style, name = "path", "" if name.lower() == self._store.bucket else name
        elif style == "host only" and not name:
            name, _, path = path.partition("/")
        if path == name:
            path = ""
        if name and (style == "host only" or (style == "host" and "." not in name)):
            host, name = f"{name}.{host}", ""
        inside = quote("/".join(filter(None, (path, name))), safe=SAFE)
        return f"{split.scheme}://" + "/".join(filter(None, (host, inside, self.make_path(key))))

    def make_path(self, key: str) -> str:
        """Return an object's path within the bucket: the prefix and `key`, percent-encoded."""
        return quote("/".join(filter(None, (self.prefix.strip("/"), key))), safe=SAFE)

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
            self.region or self._store.region,
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
            session_token=None if token is None else token.get_secret_value(),
        )
    except ValueError as error:
        raise BucketUnusable(f"this endpoint's bucket is not set up: {error}") from None
