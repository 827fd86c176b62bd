"""What a store's host implies: where the bucket's name belongs, and the region of signatures."""

import re
from dataclasses import dataclass
from typing import Final, Literal

# "path": after the host. "host": in front of it, unless the name has a dot, which no certificate
# covers. "host only": the store accepts it nowhere else.
Style = Literal["path", "host", "host only"]

US: Final = "us-east-1"  # most stores accept it where no region is set
BUCKET: Final = r"(?:(?P<bucket>.+)\.)?"
REGION: Final = r"(?P<region>[a-z0-9]+(?:-[a-z0-9]+)*)"
# As botocore's endpoints.json has them: the regions' names, and the partitions' domains.
AWS_REGION: Final = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d+)"
AWS: Final = (
    r"(?:amazonaws\.(?:com|com\.cn|eu)|c2s\.ic\.gov|sc2s\.sgov\.gov"
    r"|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)"
)


@dataclass(frozen=True, slots=True)
class StoreHosts:
    """Hosts of one store; `region` overrides the pattern's, `base` is the path of its API."""

    host: re.Pattern[str]
    style: Style
    region: str | None
    base: str


@dataclass(frozen=True, slots=True)
class Store:
    """What one host implies; `bucket` is the name that it begins with, if any."""

    style: Style
    region: str
    bucket: str | None
    base: str


def _make_row(
    pattern: str, style: Style = "path", region: str | None = None, base: str = ""
) -> StoreHosts:
    return StoreHosts(re.compile(pattern), style, region, base)


# The first that matches the entire host counts.
STORES: Final = (
    # Amazon: regional, dual-stack, FIPS, website and access-point hosts, old ones with a dash; the
    # global ones; acceleration, which goes only by the bucket's name; interface endpoints of a VPC,
    # whose first label is the word "bucket".
    _make_row(
        rf"{BUCKET}s3(?:-fips|-website|-accesspoint|-accesspoint-fips)?(?:\.dualstack)?[.-]"
        rf"{AWS_REGION}\.{AWS}",
        "host",
    ),
    _make_row(rf"{BUCKET}s3(?:-external-1)?\.amazonaws\.com", "host", US),
    _make_row(rf"{BUCKET}s3-accelerate(?:\.dualstack)?\.amazonaws\.com", "host only", US),
    _make_row(rf"{BUCKET}(?:bucket|accesspoint)\.vpce-[a-z0-9-]+\.s3\.{AWS_REGION}\.vpce\.{AWS}"),
    # Alibaba OSS, with and without the "s3." of its S3 hosts.
    _make_row(
        r"(?:(?P<bucket>(?!s3\.)[^.]+)\.)?(?:s3\.)?oss-accelerate(?:-overseas)?\.aliyuncs\.com",
        "host only",
        US,
    ),
    _make_row(
        r"(?:(?P<bucket>(?!s3\.)[^.]+)\.)?(?:s3\.)?oss-(?P<region>[a-z0-9-]+?)(?:-internal)?"
        r"\.aliyuncs(?:-internal)?\.com",
        "host only",
    ),
    # Tencent COS.
    _make_row(
        rf"{BUCKET}cos(?:-internal)?\.accelerate(?:-overseas)?\.(?:myqcloud\.com|tencentcos\.cn)",
        "host only",
        US,
    ),
    _make_row(
        rf"{BUCKET}cos(?:-internal)?\.{REGION}\.(?:myqcloud\.com|tencentcos\.cn)", "host only"
    ),
    # Huawei OBS.
    _make_row(rf"{BUCKET}obs\.{REGION}\.myhuaweicloud\.(?:com|eu)", "host only"),
    # Cloudflare R2: the account's host, possibly in a jurisdiction.
    _make_row(
        r"(?:(?P<bucket>[^.]+)\.)?(?!eu\.|fedramp\.)[^.]+(?:\.(?:eu|fedramp))?"
        r"\.r2\.cloudflarestorage\.com",
        region="auto",
    ),
    # Tigris.
    _make_row(
        rf"{BUCKET}(?:fly\.storage\.tigris\.dev|t3\.storage\.dev|t3\.storageapi\.dev)",
        "host",
        "auto",
    ),
    # DigitalOcean Spaces, also through its CDN.
    _make_row(rf"{BUCKET}(?P<region>[a-z]{{3}}\d)(?:\.cdn)?\.digitaloceanspaces\.com"),
    # RunPod's network volumes; their regions are written in capitals.
    _make_row(r"s3api-(?P<region>[a-z0-9-]+)\.runpod\.io"),
    # Supabase: the API has a path, and the region is the project's.
    _make_row(r"[^.]+(?:\.storage)?\.supabase\.(?:co|in)", region=US, base="storage/v1/s3"),
    # Google, whose signatures accept any region.
    _make_row(rf"{BUCKET}storage\.googleapis\.com", region=US),
    _make_row(rf"{BUCKET}s3\.wasabisys\.com", region=US),
    _make_row(rf"{BUCKET}(?:storage|s3)\.yandexcloud\.net", region="ru-central1"),
    # Oracle: the namespace, or the bucket itself.
    _make_row(
        r"(?:[^.]+\.compat|(?P<bucket>[^.]+)\.vhcompat)\.objectstorage\."
        rf"{REGION}\.(?:oraclecloud\.com|oci\.customer-oci\.com)"
    ),
    # IBM: public, private and direct hosts, of a region or across regions.
    _make_row(
        rf"{BUCKET}s3\.(?:private\.|direct\.)?(?:[a-z]{{3}}\.)?{REGION}"
        r"\.cloud-object-storage\.appdomain\.cloud"
    ),
    # Backblaze, Wasabi, Scaleway, OVH, IONOS, IDrive: s3.REGION.
    _make_row(
        rf"{BUCKET}s3[.-]{REGION}\.(?:backblazeb2\.com|wasabisys\.com|scw\.cloud|ionoscloud\.com"
        r"|idrivee2\.com|(?:(?:io|perf)\.)?cloud\.ovh\.(?:net|us))"
    ),
    # Linode, Vultr, Hetzner: only REGION.
    _make_row(rf"{BUCKET}(?P<region>[a-z]{{2}}-[a-z]+-\d+)\.linodeobjects\.com"),
    _make_row(rf"{BUCKET}(?P<region>[a-z]{{3}}\d)\.(?:vultrobjects|your-objectstorage)\.com"),
    _make_row(rf"{BUCKET}sos-{REGION}\.exo\.io"),
    _make_row(rf"{BUCKET}storage\.{REGION}\.nebius\.cloud"),
)
IN_CAPITALS: Final = re.compile(r"s3api-.*\.runpod\.io")
UNKNOWN_STORE: Final = Store("path", US, None, "")


def identify_store(host: str) -> Store:
    """Return what an endpoint's host implies; `host` is in lower case and without a port."""
    for row in STORES:
        if match := row.host.fullmatch(host):
            groups = match.groupdict()
            region = row.region or groups["region"]
            if IN_CAPITALS.fullmatch(host):
                region = region.upper()
            return Store(row.style, region, groups.get("bucket"), row.base)
    return UNKNOWN_STORE
