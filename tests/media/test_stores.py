"""Where a bucket's name goes and which region is signed for, by the store's own hosts alone."""

from collections.abc import Iterator
from typing import Any

import botocore.loaders
import pytest

from worker.media.s3 import Bucket, find_region
from worker.media.stores import identify_store
from worker.setting_values import BucketStyle
from worlds.bucket import ACCESS, SECRET


def amazons_hosts() -> Iterator[tuple[str, str]]:
    """Yield every host of S3 that botocore knows, with the region it is signed for."""
    data: Any = botocore.loaders.Loader().load_data("endpoints")
    for partition in data["partitions"]:
        service = partition["services"].get("s3", {"endpoints": {}})
        defaults = [partition["defaults"], service.get("defaults", {})]
        for name, endpoint in service["endpoints"].items():
            region = endpoint.get("credentialScope", {}).get("region", name)
            hosts = [endpoint.get("hostname", "s3.{region}.{dnsSuffix}")]
            for variants in (endpoint, *defaults):
                hosts += [v.get("hostname", "") for v in variants.get("variants", [])]
            for host in filter(None, hosts):
                filled = host.format(service="s3", region=region, dnsSuffix=partition["dnsSuffix"])
                yield filled, region


@pytest.mark.parametrize(("host", "region"), sorted(set(amazons_hosts())))
def test_every_host_that_amazons_client_knows_is_signed_for_its_region(
    host: str, region: str
) -> None:
    assert find_region(host) == region
    assert identify_store(host).bucket is None
    assert identify_store(f"my.bucket.{host}").bucket == "my.bucket"
    assert Bucket(f"https://{host}", ACCESS, SECRET, "b").make_address("k") == f"https://b.{host}/k"


VPC = "bucket.vpce-1a2b3c4d-5e6f.s3.eu-west-1.vpce.amazonaws.com"
ACCOUNT = "0123456789abcdef0123456789abcdef"
HOSTS = {
    "s3-us-west-2.amazonaws.com": ("host", "us-west-2"),
    "s3-fips-us-gov-west-1.amazonaws.com": ("host", "us-gov-west-1"),
    "s3-website-us-east-1.amazonaws.com": ("host", "us-east-1"),
    "s3-website.eu-central-1.amazonaws.com": ("host", "eu-central-1"),
    "s3-accelerate.amazonaws.com": ("host only", "us-east-1"),
    "s3-accelerate.dualstack.amazonaws.com": ("host only", "us-east-1"),
    VPC: ("path", "eu-west-1"),
    f"{VPC}.cn".replace("eu-west-1", "cn-north-1"): ("path", "cn-north-1"),
    "oss-cn-hangzhou.aliyuncs.com": ("host only", "cn-hangzhou"),
    "oss-cn-hangzhou-internal.aliyuncs.com": ("host only", "cn-hangzhou"),
    "s3.oss-us-west-1.aliyuncs.com": ("host only", "us-west-1"),
    "s3.oss-us-west-1-internal.aliyuncs.com": ("host only", "us-west-1"),
    "oss-accelerate.aliyuncs.com": ("host only", "us-east-1"),
    "oss-accelerate-overseas.aliyuncs.com": ("host only", "us-east-1"),
    "cos.ap-guangzhou.myqcloud.com": ("host only", "ap-guangzhou"),
    "cos.ap-guangzhou.tencentcos.cn": ("host only", "ap-guangzhou"),
    "cos-internal.ap-tokyo.tencentcos.cn": ("host only", "ap-tokyo"),
    "cos.accelerate.myqcloud.com": ("host only", "us-east-1"),
    "obs.ap-southeast-1.myhuaweicloud.com": ("host only", "ap-southeast-1"),
    "obs.eu-west-101.myhuaweicloud.eu": ("host only", "eu-west-101"),
    "cos-internal.accelerate-overseas.tencentcos.cn": ("host only", "us-east-1"),
    "s3.yandexcloud.net": ("path", "ru-central1"),
    "s3.us-west-1.idrivee2.com": ("path", "us-west-1"),
    f"{ACCOUNT}.r2.cloudflarestorage.com": ("path", "auto"),
    f"{ACCOUNT}.eu.r2.cloudflarestorage.com": ("path", "auto"),
    f"{ACCOUNT}.fedramp.r2.cloudflarestorage.com": ("path", "auto"),
    "fly.storage.tigris.dev": ("host", "auto"),
    "t3.storage.dev": ("host", "auto"),
    "t3.storageapi.dev": ("host", "auto"),
    "nyc3.digitaloceanspaces.com": ("path", "nyc3"),
    "nyc3.cdn.digitaloceanspaces.com": ("path", "nyc3"),
    "s3.us-west-004.backblazeb2.com": ("path", "us-west-004"),
    "s3.wasabisys.com": ("path", "us-east-1"),
    "s3.eu-central-1.wasabisys.com": ("path", "eu-central-1"),
    "s3.fr-par.scw.cloud": ("path", "fr-par"),
    "s3.gra.io.cloud.ovh.net": ("path", "gra"),
    "s3.gra.perf.cloud.ovh.net": ("path", "gra"),
    "s3.us-east-va.io.cloud.ovh.us": ("path", "us-east-va"),
    "us-east-1.linodeobjects.com": ("path", "us-east-1"),
    "us-iad-10.linodeobjects.com": ("path", "us-iad-10"),
    "ewr1.vultrobjects.com": ("path", "ewr1"),
    "fsn1.your-objectstorage.com": ("path", "fsn1"),
    "storage.googleapis.com": ("path", "us-east-1"),
    "storage.yandexcloud.net": ("path", "ru-central1"),
    "s3.us-south.cloud-object-storage.appdomain.cloud": ("path", "us-south"),
    "s3.private.eu-de.cloud-object-storage.appdomain.cloud": ("path", "eu-de"),
    "s3.direct.dal.us.cloud-object-storage.appdomain.cloud": ("path", "us"),
    "sos-ch-gva-2.exo.io": ("path", "ch-gva-2"),
    "storage.eu-north1.nebius.cloud": ("path", "eu-north1"),
    "s3.eu-central-3.ionoscloud.com": ("path", "eu-central-3"),
}


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("bucket", ["media", "s3-media", "nyc3", "a-b-1"])
def test_a_stores_host_implies_the_style_and_the_region(host: str, bucket: str) -> None:
    style, region = HOSTS[host]
    store = identify_store(host)
    assert (store.style, store.region, store.bucket) == (style, region, None)
    inside = identify_store(f"{bucket}.{host}")
    assert (inside.style, inside.region, inside.bucket) == (style, region, bucket)
    named = Bucket(f"https://{host}", ACCESS, SECRET, bucket).make_address("k")
    in_host = f"https://{bucket}.{host}/k"
    assert named == (f"https://{host}/{bucket}/k" if style == "path" else in_host)
    for name in (None, bucket):
        assert Bucket(f"https://{bucket}.{host}", ACCESS, SECRET, name).make_address("k") == in_host
    with pytest.raises(ValueError, match="no name"):
        Bucket(f"https://{host}", ACCESS, SECRET)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("s3api-eu-ro-1.runpod.io", "EU-RO-1"),
        ("s3api-us-ks-2.runpod.io", "US-KS-2"),
        ("abcdefgh.supabase.co", "us-east-1"),
        ("abcdefgh.storage.supabase.co", "us-east-1"),
        ("tenant.compat.objectstorage.eu-frankfurt-1.oraclecloud.com", "eu-frankfurt-1"),
        ("b.vhcompat.objectstorage.us-ashburn-1.oci.customer-oci.com", "us-ashburn-1"),
        ("ap-123456789012.s3-accesspoint.us-west-2.amazonaws.com", "us-west-2"),
        ("ap-123456789012.s3-accesspoint-fips.dualstack.us-west-2.amazonaws.com", "us-west-2"),
    ],
)
def test_hosts_that_have_no_bucket_in_front_imply_their_region(host: str, region: str) -> None:
    assert find_region(host) == region
    assert find_region(f"{host}:443") == region


@pytest.mark.parametrize(
    "host",
    [
        "media.example.com",
        "media.s3.example.com",
        "s3.example.com",
        "s3.eu-west-1.example.com",
        "s3.eu-west-1.amazonaws.com.example.com",
        "notamazonaws.com",
        "s3.eu-west-1.notamazonaws.com",
        "nyc3.digitaloceanspaces.com.example",
        "cos.example.com",
        "oss-media.example.com",
        "media.minio.internal",
        "minio",
        "localhost",
        "127.0.0.1",
        "10.0.0.1",
        "[::1]",
        "xn--ehq000d.example",
        "ec2.eu-west-1.amazonaws.com",
        "media.cloudfront.net",
    ],
)
@pytest.mark.parametrize("port", ["", ":9000"])
def test_an_unknown_store_has_the_bucket_in_the_path(host: str, port: str) -> None:
    """Also when the bucket is called like the host's first label."""
    for name in ("media", "s3", "minio", "localhost", host.partition(".")[0].strip("[]:")):
        for path in ("", "/", f"/{name}"):
            bucket = Bucket(f"https://{host}{port}{path}", ACCESS, SECRET, name)
            assert bucket.make_address("0.png") == f"https://{host}{port}/{name}/0.png"
    assert find_region(host) == "us-east-1"
    assert identify_store(host).style == "path"


@pytest.mark.parametrize(
    ("endpoint", "name", "expected"),
    [
        (
            "https://oss-cn-hangzhou.aliyuncs.com/b",
            None,
            "https://b.oss-cn-hangzhou.aliyuncs.com/k",
        ),
        (
            "https://oss-cn-hangzhou.aliyuncs.com/b/c",
            None,
            "https://b.oss-cn-hangzhou.aliyuncs.com/c/k",
        ),
        ("https://s3-accelerate.amazonaws.com", "b", "https://b.s3-accelerate.amazonaws.com/k"),
        ("https://s3.eu-west-1.amazonaws.com", "a.b", "https://s3.eu-west-1.amazonaws.com/a.b/k"),
        ("https://s3.eu-west-1.amazonaws.com/b", None, "https://s3.eu-west-1.amazonaws.com/b/k"),
        ("HTTPS://S3.EU-West-1.AmazonAWS.com", "b", "https://b.s3.eu-west-1.amazonaws.com/k"),
        ("https://b.s3.amazonaws.com/in", "b", "https://b.s3.amazonaws.com/in/k"),
        # The keys begin with a name that is given along with the one in the host.
        (
            "https://space.nyc3.digitaloceanspaces.com",
            "08-26",
            "https://space.nyc3.digitaloceanspaces.com/08-26/k",
        ),
        (
            "https://x.supabase.co/storage/v1/s3",
            "b",
            "https://x.supabase.co/storage/v1/s3/b/k",
        ),
        (
            "https://x.supabase.co/storage/v1/s3/b",
            None,
            "https://x.supabase.co/storage/v1/s3/b/k",
        ),
        (f"https://{VPC}", "bucket", f"https://{VPC}/bucket/k"),
        ("https://store.test/_", None, "https://store.test/_/k"),
        ("https://storage.googleapis.com/_", None, "https://storage.googleapis.com/_/k"),
        ("https://b.s3.company.example", None, "https://b.s3.company.example/k"),
        ("http://[::1]:9000", "b", "http://[::1]:9000/b/k"),
        ("https://b\u00fccher.example", "b", "https://xn--bcher-kva.example/b/k"),
        ("https://\u2460.example:9", "b", "https://\u2460.example:9/b/k"),
        ("https://b.s3.amazonaws.com", "B", "https://b.s3.amazonaws.com/k"),
        ("https://b.s3-fips.company.example/in", None, "https://b.s3-fips.company.example/in/k"),
        ("https://minio.example/b/c d/", "e", "https://minio.example/b/c%20d/e/k"),
    ],
)
def test_where_else_a_bucket_may_stand(endpoint: str, name: str | None, expected: str) -> None:
    assert Bucket(endpoint, ACCESS, SECRET, name).make_address("k") == expected


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://x.supabase.co/storage/v1/s3",
        "https://x.supabase.co",
        "https://s3-accelerate.amazonaws.com",
        f"https://{VPC}",
        "https://media.example.com",
        "https://s3.company.example",
        "https:///b",
        "https://",
        "s3.amazonaws.com",
        "ftp://s3.amazonaws.com/b",
        "https://s3.amazonaws.com/b?x=1",
    ],
)
def test_an_endpoint_without_a_bucket_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"no name|https://host"):
        Bucket(endpoint, ACCESS, SECRET)


AWS = "https://s3.eu-west-1.amazonaws.com"
OSS = "https://oss-cn-hangzhou.aliyuncs.com"


@pytest.mark.parametrize(
    ("style", "endpoint", "name", "expected"),
    [
        ("path", AWS, "b", f"{AWS}/b/k"),
        ("path", "https://b.s3.eu-west-1.amazonaws.com", "b", f"{AWS.replace('s3', 'b.s3')}/k"),
        ("path", OSS, "b", f"{OSS}/b/k"),
        ("virtual", "http://store.test:9000", "b", "http://b.store.test:9000/k"),
        ("virtual", "http://store.test:9000/b", None, "http://b.store.test:9000/k"),
        ("virtual", "http://store.test/b", "b", "http://b.store.test/k"),
        ("virtual", "http://b.store.test/", "b", "http://b.store.test/k"),
        ("virtual", "http://store.test/proxy//x/", "b", "http://b.store.test/proxy/x/k"),
        ("virtual", AWS, "a.b", "https://a.b.s3.eu-west-1.amazonaws.com/k"),
        ("virtual", "https://b.s3.store.test", None, "https://b.s3.store.test/k"),
        ("virtual", AWS, "s3", "https://s3.s3.eu-west-1.amazonaws.com/k"),
        ("virtual", "https://b.s3.amazonaws.com", "A B", "https://b.s3.amazonaws.com/A%20B/k"),
        ("auto", AWS, "s3", "https://s3.s3.eu-west-1.amazonaws.com/k"),
        ("auto", "http://store.test//a//b/", "c/", "http://store.test/a/b/c/k"),
    ],
)
def test_the_style_that_is_given_decides_where_the_name_goes(
    style: BucketStyle, endpoint: str, name: str | None, expected: str
) -> None:
    assert Bucket(endpoint, ACCESS, SECRET, name, style=style).make_address("k") == expected


@pytest.mark.parametrize(
    ("endpoint", "name", "prefix", "style", "reason"),
    [
        ("http://store.test", None, "", "virtual", "has no name"),
        ("http://127.0.0.1:9000", "b", "", "virtual", "of digits"),
        ("http://[::1]:9000/b", None, "", "virtual", "of digits"),
        ("http://store.test", "B", "", "virtual", "part of a host"),
        ("http://store.test/a_b", None, "", "virtual", "part of a host"),
        ("http://store.test", "-b", "", "virtual", "part of a host"),
        ("http://store.test", "b.", "", "virtual", "part of a host"),
        ("http://store.test", "b", "a/./c", "auto", r"may be \. or \.\."),
        ("http://store.test", "b", "..", "auto", r"may be \. or \.\."),
        ("http://store.test/./b", None, "", "path", r"may be \. or \.\."),
        ("http://store.test", "../b", "", "path", r"may be \. or \.\."),
        ("http://store.test", "..", "", "path", r"may be \. or \.\."),
        ("http://store.test/b/..", None, "", "path", r"may be \. or \.\."),
    ],
)
def test_a_bucket_that_cannot_be_addressed_says_why(
    endpoint: str, name: str | None, prefix: str, style: BucketStyle, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Bucket(endpoint, ACCESS, SECRET, name, prefix=prefix, style=style)


def test_dots_that_are_no_part_of_a_path_are_kept() -> None:
    bucket = Bucket("http://store.test", ACCESS, SECRET, "b", prefix=".a/b./..c", style="path")
    assert bucket.make_address("k") == "http://store.test/b/.a/b./..c/k"
