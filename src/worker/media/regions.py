"""The regions that stores have asked for: the next upload is signed for them at once."""

from dataclasses import replace
from typing import Final

from worker.media.s3 import Bucket

MOST_KEPT: Final = 64  # callers bring buckets of their own

# a bucket's address and the region it was signed for -> the one that its store took instead
_taken: dict[tuple[str, str], str] = {}


def learn(bucket: Bucket, region: str) -> None:
    """Keep that the store of `bucket` took a request signed for `region`, and not for its own."""
    key = _make_key(bucket)
    _taken.pop(key, None)
    _taken[key] = region
    if len(_taken) > MOST_KEPT:
        del _taken[next(iter(_taken))]


def recall(bucket: Bucket) -> Bucket:
    """Return the bucket, with the region that its store took last if that is another one."""
    region = _taken.get(_make_key(bucket))
    return bucket if region is None else replace(bucket, region=region)


def _make_key(bucket: Bucket) -> tuple[str, str]:
    return bucket.make_address(""), bucket.signing_region
