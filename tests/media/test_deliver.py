"""Pictures reach the reply, any S3-compatible bucket, or the caller's URL, and no one else."""

import asyncio
import base64
import datetime as dt
import http.client
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import pytest
import stamina.instrumentation
from botocore.config import Config

from worker import preflight, settings
from worker.doors.runpod.bucket import read_bucket
from worker.edge import reply
from worker.edge.reply import format_answer
from worker.errors import DeliveryFailed, ImageFetchRefused, InvalidInput, WorkerError
from worker.finding import Finding
from worker.media import objects, refusal, regions
from worker.media.deliver import ResponseFormat, check_upload_urls, deliver
from worker.media.piece import Encoded
from worker.media.s3 import Bucket, find_region, read_own_bucket
from worker.settings import Settings
from worlds.bucket import ACCESS, SECRET, Store
from worlds.site import HOST, INSIDE, Site, make_refusal, tapped

PICTURES = [
    Encoded(b"first picture", "image/png", {"width": 64, "height": 48, "seed": 7}),
    Encoded(b"second picture", "image/webp", {"width": 32, "height": 16, "seed": 8}),
]
CREDENTIALS = {"accessId": ACCESS, "accessSecret": SECRET}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store("pictures", "virtual") as store:
        yield store


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        site.names.answers["inside.test"] = [INSIDE]
        yield site


@pytest.fixture(autouse=True)
def _nobody_inside(site: Site, store: Store) -> Iterator[None]:
    store.empty()
    site.stored.clear()
    site.put_statuses.clear()
    site.put_answers.clear()
    regions._taken.clear()
    yield
    assert site.intruders == 0


def send(
    given: Settings,
    response_format: ResponseFormat = "url",
    pictures: Sequence[Encoded] = PICTURES,
    *,
    upload_urls: Sequence[str] = (),
    s3_config: Mapping[str, Any] | None = None,
    job_id: str = "job-1",
) -> list[dict[str, Any]]:
    return asyncio.run(
        deliver(
            pictures,
            response_format,
            upload_urls=upload_urls,
            bucket=read_bucket(s3_config, given),
            job_id=job_id,
            settings=given,
        )
    )


def check_targets(
    *, upload_urls: Sequence[str], s3_config: Mapping[str, Any] | None, settings: Settings
) -> tuple[str, ...]:
    """Judge where a job wants its pictures, as `serve` does; return what to warn of."""
    check_upload_urls(upload_urls, settings)
    bucket = read_bucket(s3_config, settings)
    if bucket is None:
        return ()
    bucket.require()
    return bucket.warnings


def read(url: str) -> tuple[int, bytes, str | None]:
    """Get a URL as a caller would: without credentials."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(HOST, split.port, timeout=60)
    try:
        connection.request("GET", f"{split.path}?{split.query}", headers={"Host": split.netloc})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Content-Type")
    finally:
        connection.close()


def own(store: Store, **changes: str) -> Settings:
    return settings.read(
        {
            "BUCKET_ENDPOINT_URL": store.endpoint,
            "BUCKET_ACCESS_KEY_ID": ACCESS,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
            "BUCKET_NAME": "pictures",
            **changes,
        }
    )


def test_base64_and_data_urls_hold_the_bytes_and_the_facts() -> None:
    plain, urls = (send(settings.read({}), form) for form in ("base64", "data_url"))
    for index, (entry, url, picture) in enumerate(zip(plain, urls, PICTURES, strict=True)):
        assert base64.b64decode(entry["base64"], validate=True) == picture.data
        assert url["data_url"] == f"data:{picture.mime_type};base64,{entry['base64']}"
        for one in (entry, url):
            assert one["index"] == index
            assert {name: one[name] for name in ("width", "height", "seed")} == picture.facts
            assert one["mime_type"] == picture.mime_type
            assert len({"base64", "data_url", "url"} & one.keys()) == 1


def test_the_operators_bucket_takes_the_pictures_and_the_links_read_them(store: Store) -> None:
    entries = send(
        own(store, BUCKET_PREFIX="/out put/ä", BUCKET_URL_TTL_S="120"), job_id="a/../b c"
    )
    assert store.objects("pictures") == {
        "out put/ä/a----b-c/0.png": b"first picture",
        "out put/ä/a----b-c/1.webp": b"second picture",
    }
    for entry, picture in zip(entries, PICTURES, strict=True):
        assert read(entry["url"]) == (200, picture.data, picture.mime_type)
        assert parse_qs(urlsplit(entry["url"]).query)["X-Amz-Expires"] == ["120"]
        assert SECRET not in entry["url"]


def test_the_jobs_own_bucket_takes_them_by_either_style(store: Store, site: Site) -> None:
    """Path style by address; virtual style by the bucket's own host name."""
    site.names.answers["virtual.s3.us-east-1.amazonaws.com"] = [HOST]
    given = settings.read(
        {
            "ALLOWED_IMAGE_NETWORKS": f"{HOST}/32:{store.port}",
            "FETCH_NAMESERVERS": f"{HOST}:{site.dns_port}",
        }
    )
    path = {**CREDENTIALS, "endpointUrl": store.endpoint, "bucketName": "pictures"}
    host = f"http://virtual.s3.us-east-1.amazonaws.com:{store.port}"
    for number, config in enumerate(
        (
            path,
            {**CREDENTIALS, "endpointUrl": f"{store.endpoint}/pictures"},
            {**CREDENTIALS, "endpointUrl": host},
            {**CREDENTIALS, "endpointUrl": host, "bucketName": "virtual"},
        )
    ):
        entry = send(given, pictures=PICTURES[:1], s3_config=config, job_id=f"own-{number}")[0]
        bucket = "pictures" if number < 2 else "virtual"
        assert store.objects(bucket)[f"own-{number}/0.png"] == b"first picture"
        assert read(entry["url"])[:2] == (200, b"first picture")


def test_no_checksum_is_sent_that_other_stores_do_not_know(site: Site) -> None:
    given = settings.read(
        {
            "BUCKET_ENDPOINT_URL": f"{site.http}/pictures",
            "BUCKET_ACCESS_KEY_ID": ACCESS,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
        }
    )
    (entry,) = send(given, pictures=PICTURES[:1])
    assert parse_qs(urlsplit(entry["url"]).query)["X-Amz-Expires"] == ["604800"]
    assert parse_qs(urlsplit(site.hits[-1]).query)["X-Amz-Expires"] == ["3600"]
    assert site.headers["content-type"] == "image/png"
    assert site.headers["content-length"] == str(len(PICTURES[0].data))
    assert not any(
        name.startswith("x-amz") or "encoding" in name
        for name in site.headers
        if name != "accept-encoding"
    )
    query = parse_qs(urlsplit(site.hits[-1]).query)
    assert query["X-Amz-SignedHeaders"] == ["content-type;host"]
    assert not any("checksum" in name.lower() for name in query)


def test_a_presigned_upload_url_takes_each_picture_at_its_own_address(store: Store) -> None:
    given = settings.read({"ALLOWED_IMAGE_NETWORKS": f"{HOST}/32:{store.port}"})
    urls = [
        store.client.generate_presigned_url(
            "put_object", Params={"Bucket": "pictures", "Key": f"mine~{index}.png"}
        )
        for index in range(2)
    ]
    entries = send(given, upload_urls=urls)
    assert [entry["url"] for entry in entries] == [url.split("?")[0] for url in urls]
    stored = store.objects("pictures")
    assert (stored["mine~0.png"], stored["mine~1.png"]) == (b"first picture", b"second picture")


@pytest.mark.parametrize("faults", [[500], [503, 503, 429], [408, 500, 502]])
def test_an_upload_is_tried_again_until_the_store_takes_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, faults: list[int]
) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    site.put_statuses.extend(faults)
    given = settings.read(site.environ)
    send(given, pictures=PICTURES[:1], upload_urls=[f"{site.http}/mine?sig=x"])
    assert site.stored == {"/mine?sig=x": b"first picture"}


@pytest.mark.parametrize("initial", [objects.WAIT_INITIAL_S, 0.0])
def test_a_store_gets_time_before_it_is_asked_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, initial: float
) -> None:
    """The first wait, and by chance up to as much again."""
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", initial)
    waits: list[float] = []
    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append(details.wait_for)])
    try:
        site.put_statuses.append(503)
        send(settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x"])
    finally:
        stamina.instrumentation.set_on_retry_hooks(before)
    (wait,) = waits
    assert initial <= wait <= 2 * initial + 1e-9


FINAL = [300, 301, 303, 307, 308, 400, 401, 403, 404, 405, 409, 410, 411, 412, 413, 415, 422, 451]


@pytest.mark.parametrize("status", FINAL)
def test_a_refusal_of_the_callers_store_is_the_callers_to_fix(site: Site, status: int) -> None:
    own_config = {**CREDENTIALS, "endpointUrl": f"{site.http}/b"}
    for target in ({"upload_urls": [f"{site.http}/x"]}, {"s3_config": own_config}):
        site.put_statuses.append(status)
        site.hits.clear()
        with pytest.raises(DeliveryFailed, match=f"status {status}$") as failure:
            send(settings.read(site.environ), pictures=PICTURES[:1], **target)
        answer = format_answer(reply.make_failure(failure.value))
        assert (answer["error_code"], answer["error_type"]) == ("DELIVERY_FAILED", "bad_request")
        assert answer["retryable"] is False
        assert len(site.hits) == 1


@pytest.mark.parametrize("status", FINAL)
def test_a_refusal_of_the_operators_bucket_is_the_operators_to_fix(site: Site, status: int) -> None:
    site.put_statuses.append(status)
    site.hits.clear()
    with pytest.raises(DeliveryFailed, match=f"status {status}$") as failure:
        send(at(site), pictures=PICTURES[:1])
    answer = format_answer(reply.make_failure(failure.value))
    assert (answer["error_code"], answer["error_type"]) == ("DELIVERY_FAILED", "internal")
    assert answer["retryable"] is False
    assert len(site.hits) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_a_store_may_get_over_is_tried_again_and_may_be_later(
    site: Site, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    for given in (at(site), settings.read(site.environ)):
        site.put_statuses[:] = [status] * objects.UPLOAD_ATTEMPTS
        urls = [] if given.bucket_endpoint_url else [f"{site.http}/x"]
        with pytest.raises(DeliveryFailed, match=f"status {status} ") as failure:
            send(given, pictures=PICTURES[:1], upload_urls=urls)
        answer = format_answer(reply.make_failure(failure.value))
        assert (answer["retryable"], answer["error_type"]) == (True, "transient")
        assert not site.put_statuses


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://nosuch.test:{tls}/x", False),
        ("https://stranger.test:{tls}/x", False),  # no certificate that we know
        ("http://trouble.test:{port}/x", True),
        ("http://127.0.0.1:{tls}/x", True),
    ],
)
def test_why_a_store_cannot_be_reached_decides_too(
    site: Site, monkeypatch: pytest.MonkeyPatch, url: str, passes: bool
) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    site.names.answers |= {"trouble.test": ["trouble"], "stranger.test": [HOST]}
    target = url.format(port=site.http_port, tls=site.https_port)
    config = {**CREDENTIALS, "endpointUrl": target}
    for to in ({"upload_urls": [target]}, {"s3_config": config}):
        with pytest.raises(DeliveryFailed) as failure:
            send(settings.read(site.environ), pictures=PICTURES[:1], **to)
        assert failure.value.retryable is passes, failure.value.message
        assert ("tried" in failure.value.message) is passes


def refuse(status: int, code: str, more: str = "") -> bytes:
    """Return a store's refusal as S3 words it."""
    body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code>{more}</Error>"
    return make_refusal(status, body.encode())


@pytest.mark.parametrize(
    ("status", "code", "types", "retryable", "requests"),
    [
        (403, "SignatureDoesNotMatch", ("bad_request", "internal"), (False, False), 1),
        (404, "NoSuchBucket", ("bad_request", "internal"), (False, False), 1),
        (403, "AccessDenied", ("bad_request", "internal"), (False, False), 1),
        (501, "NotImplemented", ("bad_request", "internal"), (False, False), 1),
        (503, "SlowDown", ("transient", "transient"), (True, True), 4),
        (400, "RequestTimeout", ("transient", "transient"), (True, True), 4),
    ],
)
def test_a_refused_upload_says_the_stores_own_word_and_its_cause_decides(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    *,
    status: int,
    code: str,
    types: tuple[str, str],
    retryable: tuple[bool, bool],
    requests: int,
) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    config = {**CREDENTIALS, "endpointUrl": f"{site.http}/b"}
    opened = settings.read(site.environ)
    targets: list[tuple[Settings, dict[str, Any], int]] = [
        (opened, {"upload_urls": [f"{site.http}/x?sig=y"]}, 0),
        (opened, {"s3_config": config}, 0),
        (at(site), {}, 1),
    ]
    for given, target, of in targets:
        site.put_answers[:] = [refuse(status, code)] * requests
        site.hits.clear()
        with pytest.raises(DeliveryFailed, match=rf"status {status} \({code}\)") as failure:
            send(given, pictures=PICTURES[:1], **target)
        assert failure.value.error_type == types[of]
        assert failure.value.retryable is retryable[of]
        assert len(site.hits) == requests


def test_a_wrong_clock_is_retried_elsewhere_only_if_it_is_the_workers(site: Site) -> None:
    """Whoever signed is at fault: another worker may have the right time, a URL never will."""
    skewed = refuse(403, "RequestTimeTooSkewed")
    config = {**CREDENTIALS, "endpointUrl": f"{site.http}/b"}
    opened = settings.read(site.environ)
    for given, target, retryable in (
        (at(site), {}, True),
        (opened, {"s3_config": config}, True),
        (opened, {"upload_urls": [f"{site.http}/x"]}, False),
    ):
        site.put_answers[:] = [skewed]
        site.hits.clear()
        with pytest.raises(DeliveryFailed, match="RequestTimeTooSkewed") as failure:
            send(given, pictures=PICTURES[:1], **target)
        assert failure.value.retryable is retryable
        assert len(site.hits) == 1


def test_a_refusal_reads_as_its_message() -> None:
    assert str(objects.RefusedError("the store is closed")) == "the store is closed"


WRONG_REGION = "AuthorizationQueryParametersError"


def list_regions(site: Site) -> list[str]:
    """Return the region of every request's signature."""
    queries = [parse_qs(urlsplit(hit).query) for hit in site.hits]
    return [query["X-Amz-Credential"][0].split("/")[2] for query in queries]


@pytest.mark.parametrize("given", [None, "auto", "us-west-2"])
def test_a_wrong_region_is_signed_again_for_the_one_that_the_store_names(
    site: Site, given: str | None
) -> None:
    own = at(site, **({"BUCKET_REGION": given} if given else {}))
    config = {**CREDENTIALS, "endpointUrl": f"{site.http}/b"}
    config |= {"region": given} if given else {}
    for number, (use, s3_config) in enumerate(((own, None), (settings.read(site.environ), config))):
        site.hits.clear()
        site.put_answers[:] = [refuse(400, WRONG_REGION, "<Region>EU-RO-1</Region>")]
        (entry,) = send(use, pictures=PICTURES[:1], s3_config=s3_config, job_id=f"a{number}")
        first = given or "us-east-1"
        assert list_regions(site) == [first, "EU-RO-1"]
        assert "%2FEU-RO-1%2Fs3%2F" in entry["url"]
        site.hits.clear()  # the next picture of this process needs no second request
        (entry,) = send(use, pictures=PICTURES[:1], s3_config=s3_config, job_id=f"b{number}")
        assert list_regions(site) == ["EU-RO-1"]
        assert "%2FEU-RO-1%2Fs3%2F" in entry["url"]


def test_a_region_is_asked_for_once_and_kept_only_if_the_store_took_it(site: Site) -> None:
    moon, mars = (f"<Region>{name}-1</Region>" for name in ("moon", "mars"))
    site.put_answers[:] = [refuse(400, WRONG_REGION, moon), refuse(400, WRONG_REGION, mars)]
    site.hits.clear()
    with pytest.raises(DeliveryFailed, match=WRONG_REGION):
        send(at(site), pictures=PICTURES[:1])
    assert list_regions(site) == ["us-east-1", "moon-1"]
    site.hits.clear()
    send(at(site), pictures=PICTURES[:1])
    assert list_regions(site) == ["us-east-1"]


def test_a_region_is_that_of_one_bucket_and_may_change_again(site: Site) -> None:
    moon, mars = (f"<Region>{name}-1</Region>" for name in ("moon", "mars"))
    for answers, name, signed in (
        ([refuse(400, WRONG_REGION, moon)], "a", ["us-east-1", "moon-1"]),
        ([], "b", ["us-east-1"]),
        ([refuse(400, WRONG_REGION, mars)], "a", ["moon-1", "mars-1"]),
        ([], "a", ["mars-1"]),
    ):
        site.put_answers[:] = answers
        site.hits.clear()
        send(at(site, BUCKET_NAME=name), pictures=PICTURES[:1])
        assert list_regions(site) == signed
    site.hits.clear()
    send(at(site, BUCKET_NAME="a", BUCKET_REGION="venus-1"), pictures=PICTURES[:1])
    assert list_regions(site) == ["venus-1"]  # what is set is tried before what was once named


@pytest.mark.parametrize(
    ("status", "region"),
    [(400, "us-east-1"), (400, "a b"), (301, "moon-1"), (400, "-moon"), (400, "m" * 64)],
)
def test_what_names_no_other_region_is_not_signed_again(
    site: Site, status: int, region: str
) -> None:
    site.put_answers[:] = [refuse(status, WRONG_REGION, f"<Region>{region}</Region>")]
    site.hits.clear()
    with pytest.raises(DeliveryFailed):
        send(at(site), pictures=PICTURES[:1])
    assert len(site.hits) == 1


def test_a_presigned_url_is_never_signed_again(site: Site) -> None:
    site.put_answers[:] = [refuse(400, WRONG_REGION, "<Region>moon-1</Region>")]
    site.hits.clear()
    with pytest.raises(DeliveryFailed, match=WRONG_REGION):
        send(settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x"])
    assert len(site.hits) == 1


def test_regions_of_old_buckets_are_forgotten() -> None:
    buckets = [Bucket("https://store.test", ACCESS, SECRET, f"b{number}") for number in range(65)]
    for bucket in buckets[:64]:
        regions.learn(bucket, "moon-1")
    regions.learn(buckets[0], "mars-1")  # again: now the newest
    regions.learn(buckets[64], "moon-1")
    assert [regions.recall(bucket).region for bucket in (*buckets[:3], buckets[64])] == [
        *("mars-1", None, "moon-1", "moon-1")
    ]


def test_azure_gets_the_kind_of_its_blob_and_no_other_store_does(site: Site) -> None:
    given = settings.read(site.environ)
    sas = "sv=2024-11-04&se=2026-12-01T00%3A00%3A00Z&sr=b&sp=cw&sig=a%2Fb%2Bc%3D"
    site.put_statuses.append(201)
    (entry,) = send(given, pictures=PICTURES[:1], upload_urls=[f"{site.http}/box/0.png?{sas}"])
    assert site.headers["x-ms-blob-type"] == "BlockBlob"
    assert site.headers["content-type"] == "image/png"
    assert site.hits[-1] == f"/box/0.png?{sas}"
    assert entry["url"] == f"{site.http}/box/0.png"
    send(given, pictures=PICTURES[:1], upload_urls=[f"{site.http}/box/0.png?sv=2024&sig=x"])
    assert site.headers["x-ms-blob-type"] == "BlockBlob"
    for query in ("", "?sig=x", "?sv=2024", "?X-Amz-Signature=x&sig=y", "?SIG=x&SV=y"):
        send(given, pictures=PICTURES[:1], upload_urls=[f"{site.http}/box/0.png{query}"])
        assert "x-ms-blob-type" not in site.headers
    send(at(site), pictures=PICTURES[:1])
    assert "x-ms-blob-type" not in site.headers


def at(site: Site, **changes: str) -> Settings:
    """Return the settings of an operator whose bucket is the site."""
    given = {
        **site.environ,
        "BUCKET_ENDPOINT_URL": f"{site.http}/pictures",
        "BUCKET_ACCESS_KEY_ID": ACCESS,
        "BUCKET_SECRET_ACCESS_KEY": SECRET,
    }
    return settings.read({**given, **changes})


def test_temporary_keys_send_their_session_token_signed(site: Site) -> None:
    token = "FwoGZX/+IvYXdz=="
    config = {**CREDENTIALS, "endpointUrl": f"{site.http}/b", "sessionToken": token}
    for given, s3_config in (
        (at(site, BUCKET_SESSION_TOKEN=token), None),
        (settings.read(site.environ), config),
    ):
        (entry,) = send(given, pictures=PICTURES[:1], s3_config=s3_config)
        for url in (site.hits[-1], entry["url"]):
            query = parse_qs(urlsplit(url).query)
            assert query["X-Amz-Security-Token"] == [token]
        assert not any(name.startswith("x-amz") for name in site.headers)
    (entry,) = send(at(site), pictures=PICTURES[:1])
    assert "Security-Token" not in entry["url"] + site.hits[-1]


def test_a_session_token_is_signed_as_amazons_own_client_signs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment)
    endpoint = "https://s3.eu-west-1.amazonaws.com"
    theirs = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        aws_session_token="token/+=",
        config=Config(signature_version="s3v4", s3={"addressing_style": "virtual"}),
    )
    expected = theirs.generate_presigned_url(
        "get_object", Params={"Bucket": "pictures", "Key": "k"}, ExpiresIn=600
    )
    bucket = Bucket(endpoint, ACCESS, SECRET, "pictures", session_token="token/+=")
    ours = bucket.sign("GET", "k", 600)
    assert urlsplit(ours)[:3] == urlsplit(expected)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(expected).query)
    assert "token" not in repr(bucket)


@pytest.mark.parametrize("ending", ["", "/", "/cdn/", "/cdn", "/cdn_"])
def test_a_public_address_is_in_the_reply_where_there_is_one(store: Store, ending: str) -> None:
    public = f"https://pictures.example.com{ending}"
    given = own(store, BUCKET_PUBLIC_URL=public, BUCKET_PREFIX="out put/\u00e4")
    entries = send(given, job_id="public")
    assert [entry["url"] for entry in entries] == [
        f"{public.rstrip('/')}/out%20put/%C3%A4/public/{name}" for name in ("0.png", "1.webp")
    ]
    assert store.objects("pictures")["out put/\u00e4/public/0.png"] == b"first picture"


def test_slashes_of_a_prefix_fold_in_keys_and_addresses_alike(store: Store) -> None:
    entries = send(own(store, BUCKET_PREFIX="//a//b///"), pictures=PICTURES[:1])
    assert store.objects("pictures") == {"a/b/job-1/0.png": b"first picture"}
    assert read(entries[0]["url"])[:2] == (200, b"first picture")
    given = own(store, BUCKET_PREFIX="a//b", BUCKET_PUBLIC_URL="https://p.example.com")
    (entry,) = send(given, pictures=PICTURES[:1])
    assert entry["url"] == "https://p.example.com/a/b/job-1/0.png"


def test_the_operators_public_address_is_not_that_of_a_callers_bucket(site: Site) -> None:
    given = at(site, BUCKET_PUBLIC_URL="https://pictures.example.com")
    config = {**CREDENTIALS, "endpointUrl": f"{site.http}/b"}
    (entry,) = send(given, pictures=PICTURES[:1], s3_config=config)
    assert entry["url"].startswith(f"{site.http}/b/")
    (entry,) = send(given, pictures=PICTURES[:1], upload_urls=[f"{site.http}/x?sig=y"])
    assert entry["url"] == f"{site.http}/x"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("acces_id", "accessId"),
        ("accessKeyId", "accessId"),
        ("bucket", "bucketName"),
        ("endpoint", "endpointUrl"),
        ("session_token", "sessionToken"),
        ("REGION", "region"),
        ("colour", None),
        ("\ud800\n", None),
        ("a\nb", None),
        ("schl\u00fcssel", None),
        ("x" * 5000, None),
    ],
)
def test_an_unknown_key_of_a_jobs_bucket_is_reported(key: str, meant: str | None) -> None:
    given = settings.read({})
    good = {**CREDENTIALS, "endpointUrl": "https://store.test/b"}
    assert check_targets(upload_urls=[], s3_config=good, settings=given) == ()
    (warning,) = check_targets(upload_urls=[], s3_config={**good, key: "x"}, settings=given)
    assert warning.startswith("s3Config.")
    assert warning.isascii()
    assert warning.isprintable()
    assert "is not a known key" in warning
    assert warning.endswith(f"did you mean {meant}?" if meant else "a known key")
    assert len(warning) < 120
    with pytest.raises(InvalidInput) as refused:
        check_targets(
            upload_urls=[],
            s3_config={**good, key: "x"},
            settings=settings.read({"STRICT_INPUT": "1"}),
        )
    assert len(refused.value.details) == 1
    del good["accessId"]
    with pytest.raises(InvalidInput) as refused:
        check_targets(upload_urls=[], s3_config={**good, key: "x"}, settings=given)
    assert refused.value.details[0].field == "s3Config.accessId"
    assert "known key" in refused.value.details[1].message


@pytest.mark.parametrize("style", ["virtual", "Virtual", " VIRTUAL "])
def test_the_style_of_a_jobs_bucket_is_read_in_any_case(style: str) -> None:
    config = {**CREDENTIALS, "endpointUrl": "https://store.test/b", "style": style}
    bucket = read_bucket(config, settings.read({}))
    assert bucket is not None
    assert bucket.require().make_address("k") == "https://b.store.test/k"


def test_many_unknown_keys_are_not_all_reported() -> None:
    config = {**CREDENTIALS, "endpointUrl": "https://store.test/b"}
    config |= {f"x{number}": "y" for number in range(1000)}
    warnings = check_targets(upload_urls=[], s3_config=config, settings=settings.read({}))
    assert len(warnings) == 10


def test_a_store_that_keeps_failing_is_a_failed_delivery(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    site.put_statuses.extend([500] * 9)
    with pytest.raises(DeliveryFailed, match="status 500"):
        send(settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x"])
    assert len(site.put_statuses) == 9 - 4  # the attempts that docs/security.md states


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_status_of_success_is_one(site: Site, status: int) -> None:
    site.put_statuses.append(status)
    (entry,) = send(
        settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x?s=1#f"]
    )
    assert entry["url"] == f"{site.http}/x"


@pytest.mark.parametrize(
    ("job_id", "folder"),
    [
        ("job_1-Z", "job_1-Z"),
        ("", "job"),
        ("\u00e4 b\n", "--b-"),
        ("x" * 128, "x" * 128),
        ("x" * 129 + "/", "x" * 128),
    ],
)
def test_a_job_has_a_folder_of_its_own_in_a_bucket(site: Site, job_id: str, folder: str) -> None:
    kinds = {"image/jpeg": "jpg", "image/webp": "webp", "image/png": "png", "image/x-new": "bin"}
    kinds |= {"audio/wav": "wav", "audio/flac": "flac", "audio/mpeg": "mp3", "audio/ogg": "opus"}
    kinds |= {"audio/pcm": "pcm"}
    pictures = [Encoded(b"x", kind, {}) for kind in kinds]
    entries = send(at(site), pictures=pictures, job_id=job_id)
    assert [urlsplit(entry["url"]).path for entry in entries] == [
        f"/pictures/{folder}/{index}.{ending}" for index, ending in enumerate(kinds.values())
    ]


def test_of_uploads_that_are_refused_at_once_the_first_is_told() -> None:
    urls = ["https://user:password@store.test/0", "ftp://store.test/1"]
    with pytest.raises(ImageFetchRefused, match="user name or password"):
        send(settings.read({}), upload_urls=urls)


def test_upload_urls_that_no_picture_needs_are_left_alone(site: Site) -> None:
    urls = [f"{site.http}/{index}" for index in range(4)]
    entries = send(settings.read(site.environ), upload_urls=urls)
    assert [entry["url"] for entry in entries] == urls[:2]
    assert site.stored.keys() == {"/0", "/1"}


def test_an_upload_url_goes_before_a_jobs_bucket_and_that_before_the_operators(site: Site) -> None:
    config = {**CREDENTIALS, "endpointUrl": f"{site.http}/theirs"}
    urls = [f"{site.http}/mine"]
    for upload_urls, s3_config, path in (
        (urls, config, "/mine"),
        ((), config, "/theirs/job-1/0.png"),
        ((), None, "/pictures/job-1/0.png"),
    ):
        (entry,) = send(
            at(site), pictures=PICTURES[:1], upload_urls=upload_urls, s3_config=s3_config
        )
        assert urlsplit(entry["url"]).path == path


def test_blanks_around_the_values_of_a_jobs_bucket_are_no_part_of_them(site: Site) -> None:
    config = {
        "endpointUrl": f" {site.http} ",
        "accessId": f"\t{ACCESS}\n",
        "accessSecret": f" {SECRET}",
        "bucketName": " b ",
        "region": " moon-1 ",
        "sessionToken": "t" * 4096,
    }
    (entry,) = send(settings.read(site.environ), pictures=PICTURES[:1], s3_config=config)
    query = parse_qs(urlsplit(entry["url"]).query)
    assert urlsplit(entry["url"]).path == "/b/job-1/0.png"
    assert query["X-Amz-Credential"][0].startswith(f"{ACCESS}/")
    assert query["X-Amz-Credential"][0].endswith("/moon-1/s3/aws4_request")
    assert query["X-Amz-Security-Token"] == ["t" * 4096]


def test_an_unknown_key_is_shown_up_to_sixty_characters() -> None:
    config = {**CREDENTIALS, "endpointUrl": "https://store.test/b"}
    for length, shown in ((60, 60), (61, 60)):
        (warning,) = check_targets(
            upload_urls=[], s3_config={**config, "q" * length: ""}, settings=settings.read({})
        )
        assert warning == f"s3Config.{'q' * shown}: is not a known key"


def test_the_operators_bucket_has_what_the_settings_say(site: Site) -> None:
    bucket = read_own_bucket(
        at(
            site,
            BUCKET_NAME="b",
            BUCKET_REGION="moon-1",
            BUCKET_PREFIX="/in/",
            BUCKET_SESSION_TOKEN="token",
        )
    )
    assert bucket is not None
    assert (bucket.access_key_id, bucket.secret_access_key) == (ACCESS, SECRET)
    assert (bucket.name, bucket.region, bucket.session_token) == ("b", "moon-1", "token")
    assert bucket.make_address("k") == f"{site.http}/pictures/b/in/k"


@pytest.mark.parametrize(
    "missing", ["BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"]
)
def test_an_operators_bucket_that_lacks_anything_is_none(missing: str) -> None:
    names = {"BUCKET_ACCESS_KEY_ID": ACCESS, "BUCKET_SECRET_ACCESS_KEY": SECRET}
    names |= {"BUCKET_ENDPOINT_URL": "https://store.test/b"}
    assert read_own_bucket(settings.read(names)) is not None
    complete = settings.read(names)
    lacking = complete.model_copy(update={missing.lower(): None})
    assert read_own_bucket(lacking) is None


def test_the_host_that_a_buckets_name_makes_must_be_allowed_too(site: Site) -> None:
    """Also where it comes by another door than those that check it before anything is made."""
    endpoint = f"http://site.test:{site.http_port}"
    bucket = Bucket(endpoint, ACCESS, SECRET, "b", style="virtual")
    given = settings.read({**site.environ, "ALLOWED_IMAGE_HOSTS": "site.test"})
    with pytest.raises(ImageFetchRefused, match="this endpoint allows"):
        asyncio.run(objects.put_object(bucket, "k", b"x", "image/png", given, trusted=False))


def test_a_store_that_never_answers_ends_with_the_budget(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "UPLOAD_ATTEMPT_S", 0.1)
    monkeypatch.setattr(objects, "UPLOAD_TOTAL_S", 0.3)
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    site.put_statuses.extend([-1] * 9)
    with pytest.raises(DeliveryFailed, match="reached"):  # and not after the site's hour
        send(settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x"])


def test_what_a_store_says_to_an_upload_that_it_took_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal, "ANSWER_S", 3600)
    monkeypatch.setattr(objects, "UPLOAD_ATTEMPTS", 1)
    monkeypatch.setattr(site, "falls_silent", True)
    site.put_answers[:] = [make_refusal(200, b"taken").replace(b"Length: 5", b"Length: 9")]
    send(settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x"])
    assert not site.put_answers


def test_no_upload_is_tried_again_after_its_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "UPLOAD_TOTAL_S", 1e-6)
    site.put_statuses.extend([500] * 2)
    with pytest.raises(DeliveryFailed, match="status 500"):
        send(settings.read(site.environ), pictures=PICTURES[:1], upload_urls=[f"{site.http}/x"])
    assert len(site.put_statuses) == 1


def test_what_is_sent_to_the_operators_bucket_is_the_address_that_was_signed(site: Site) -> None:
    """Some servers verify the bytes of the path, however it may also be encoded."""
    send(at(site, BUCKET_PREFIX="a=b(c)"), pictures=PICTURES[:1])
    path, _, query = site.hits[-1].partition("?")
    assert path == "/pictures/a%3Db%28c%29/job-1/0.png"
    assert "%2Fus-east-1%2Fs3%2Faws4_request" in query


REFUSED = [
    "http://{inside}:{port}/bucket",
    "http://inside.test:{port}/bucket",
    "https://169.254.169.254/bucket",
    "https://user:password@store.test/bucket",
    "https://store.test:22/bucket",
    "http://store.test/bucket",
    "https://store.test\\@other.test/bucket",
    "https://2130706433/bucket",
    "https://[::1]/bucket",
    "ftp://store.test/bucket",
    "file:///etc/passwd",
    "/runpod-volume/out.png",
]


@pytest.mark.parametrize("url", REFUSED)
def test_upload_targets_obey_the_policy_for_image_urls(site: Site, url: str) -> None:
    given, target = settings.read(site.environ), url.format(inside=INSIDE, port=site.http_port)
    config = {**CREDENTIALS, "endpointUrl": target}
    with tapped() as dialled:
        with pytest.raises(ImageFetchRefused) as failure:
            send(given, pictures=PICTURES[:1], upload_urls=[target])
        assert failure.value.details[0].field == "upload_url"
        with pytest.raises((ImageFetchRefused, InvalidInput)) as refused:
            send(given, pictures=PICTURES[:1], s3_config=config)
        assert refused.value.details[0].field in ("s3Config", "s3Config.endpointUrl")
    assert not dialled
    if "inside.test" not in url:
        with pytest.raises(ImageFetchRefused) as failure:
            check_targets(
                upload_urls=["https://store.test/x", target], s3_config=None, settings=given
            )
        assert failure.value.details[0].field == "upload_url"
        with pytest.raises((ImageFetchRefused, InvalidInput)):
            check_targets(upload_urls=[], s3_config=config, settings=given)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"endpointUrl": "https://store.test", "bucketName": "b"},
        {**CREDENTIALS, "bucketName": "b"},
        {**CREDENTIALS, "endpointUrl": "https://store.test"},
        {**CREDENTIALS, "endpointUrl": 7, "bucketName": "b"},
        {**CREDENTIALS, "endpointUrl": "https://store.test", "bucketName": ["b"]},
        {**CREDENTIALS, "endpointUrl": "", "bucketName": "b"},
        {**CREDENTIALS, "endpointUrl": "https://store.test?x=1", "bucketName": "b"},
        {**CREDENTIALS, "endpointUrl": "https://[store/b", "bucketName": "b"},
        {**CREDENTIALS, "sessionToken": 7, "endpointUrl": "https://store.test/b"},
        {**CREDENTIALS, "accessId": "x" * 4097, "endpointUrl": "https://store.test/b"},
        {**CREDENTIALS, "bucketName": " \n", "endpointUrl": "https://store.test"},
        {**CREDENTIALS, "accessSecret": None, "endpointUrl": "https://store.test/b"},
        {**CREDENTIALS, "style": "sideways", "endpointUrl": "https://store.test/b"},
        {**CREDENTIALS, "style": "virtual", "endpointUrl": "https://93.184.215.14/b"},
        {**CREDENTIALS, "bucketName": "../b", "endpointUrl": "https://store.test"},
    ],
)
def test_a_jobs_bucket_that_is_incomplete_is_invalid(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as failure:
        check_targets(upload_urls=[], s3_config=config, settings=settings.read({}))
    assert failure.value.details
    assert SECRET not in str(failure.value)


def test_an_operators_bucket_without_a_name_says_so_without_its_address() -> None:
    given = settings.read(
        {
            "BUCKET_ENDPOINT_URL": "https://account.r2.cloudflarestorage.com",
            "BUCKET_ACCESS_KEY_ID": ACCESS,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
        }
    )
    with pytest.raises(DeliveryFailed, match="no name") as failure:
        send(given)
    assert (failure.value.retryable, failure.value.error_type) == (False, "internal")
    assert "cloudflare" not in failure.value.message


def test_url_without_any_target_is_invalid() -> None:
    with pytest.raises(InvalidInput, match="needs a bucket"):
        send(settings.read({}))
    with pytest.raises(InvalidInput, match="each picture"):
        send(settings.read({}), upload_urls=["https://store.test/x"])


def test_no_failure_contains_a_secret_an_address_or_a_host(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    given = settings.read(site.environ)
    messages = []
    for target in (
        f"http://inside.test:{site.http_port}/b",
        f"http://nosuch.test:{site.http_port}/b",
    ):
        for arguments in (
            {"upload_urls": [f"{target}?X-Amz-Signature=abcdef"]},
            {"s3_config": {**CREDENTIALS, "endpointUrl": target}},
        ):
            with pytest.raises(WorkerError) as failure:
                send(given, pictures=PICTURES[:1], **arguments)
            messages.append(failure.value.message)
    assert len(messages) == 4
    for word in ("127.", ".test", "abcdef", ACCESS, SECRET, str(site.http_port)):
        assert not any(word in message for message in messages)


def test_signatures_are_those_of_the_published_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon's own example of a presigned GET (Authenticating Requests: Using Query Parameters)."""
    moment = dt.datetime(2013, 5, 24, tzinfo=dt.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment)
    bucket = Bucket("https://examplebucket.s3.amazonaws.com", ACCESS, SECRET)
    query = parse_qs(urlsplit(bucket.sign("GET", "test.txt", 86400)).query)
    assert query["X-Amz-Signature"] == [
        "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    ]


@pytest.mark.parametrize(
    ("endpoint", "name", "expected"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "b", "https://b.s3.eu-west-1.amazonaws.com/k"),
        ("https://b.s3.eu-west-1.amazonaws.com", None, "https://b.s3.eu-west-1.amazonaws.com/k"),
        ("https://b.s3.eu-west-1.amazonaws.com/", "b", "https://b.s3.eu-west-1.amazonaws.com/k"),
        ("https://s3.amazonaws.com", "a.b", "https://s3.amazonaws.com/a.b/k"),
        ("https://x.r2.cloudflarestorage.com", "b", "https://x.r2.cloudflarestorage.com/b/k"),
        ("https://x.r2.cloudflarestorage.com/b", None, "https://x.r2.cloudflarestorage.com/b/k"),
        ("https://x.r2.cloudflarestorage.com/b", "b", "https://x.r2.cloudflarestorage.com/b/k"),
        ("https://storage.googleapis.com", "b", "https://storage.googleapis.com/b/k"),
        ("http://minio:9000", "b", "http://minio:9000/b/k"),
        ("http://minio:9000/proxy", "b", "http://minio:9000/proxy/b/k"),
        ("https://b.nyc3.digitaloceanspaces.com", None, "https://b.nyc3.digitaloceanspaces.com/k"),
        ("https://s3api-eu-ro-1.runpod.io", "b", "https://s3api-eu-ro-1.runpod.io/b/k"),
    ],
)
def test_the_object_is_addressed_as_the_store_wants(
    endpoint: str, name: str | None, expected: str
) -> None:
    assert Bucket(endpoint, ACCESS, SECRET, name).make_address("k") == expected


@pytest.mark.parametrize("host", ["s3.eu-west-1.amazonaws.com", "minio:9000"])
def test_a_region_that_is_given_goes_before_the_hosts(host: str) -> None:
    found = find_region(host)
    signed = Bucket(f"https://{host}/b", ACCESS, SECRET).sign("GET", "k", 60)
    assert f"%2F{found}%2Fs3%2F" in signed
    fixed = Bucket(f"https://{host}/b", ACCESS, SECRET, region="moon-1").sign("GET", "k", 60)
    assert "%2Fmoon-1%2Fs3%2F" in fixed


def test_no_link_is_signed_for_longer_than_a_signature_may_hold() -> None:
    bucket = Bucket("https://store.test/b", ACCESS, SECRET)
    for asked, expected in ((60, 60), (604_800, 604_800), (604_801, 604_800), (10**9, 604_800)):
        query = parse_qs(urlsplit(bucket.sign("GET", "k", asked)).query)
        assert query["X-Amz-Expires"] == [str(expected)]


def test_a_bucket_shows_no_secret() -> None:
    assert SECRET not in repr(Bucket("https://store.test/b", ACCESS, SECRET))


def test_a_bucket_that_cannot_work_stops_the_start() -> None:
    given = {
        "BUCKET_ENDPOINT_URL": "https://account.r2.cloudflarestorage.com",
        "BUCKET_ACCESS_KEY_ID": ACCESS,
        "BUCKET_SECRET_ACCESS_KEY": SECRET,
    }

    def found(**more: str) -> Finding:
        findings = preflight.check(settings.read({**given, **more}))
        return next(finding for finding in findings if finding.check == "bucket")

    change = "fix BUCKET_NAME, _PREFIX, _STYLE or _ENDPOINT_URL"
    assert (found().level, found().change) == ("fatal", change)
    assert found(BUCKET_NAME="pictures").level == "ok"
    assert found(BUCKET_NAME="pictures", BUCKET_PREFIX="a/../b").level == "fatal"
    assert found(BUCKET_NAME="Pictures!", BUCKET_STYLE="virtual").level == "fatal"


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_an_upload_is_signed_as_amazons_own_client_signs_it(
    monkeypatch: pytest.MonkeyPatch, style: Literal["path", "virtual"]
) -> None:
    moment = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment)
    host = "https://s3.eu-west-1.amazonaws.com"
    theirs = boto3.client(
        "s3",
        endpoint_url=host,
        region_name="eu-west-1",
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": style},
            request_checksum_calculation="when_required",
        ),
    )
    expected = theirs.generate_presigned_url(
        "put_object",
        Params={"Bucket": "pictures", "Key": "a b/ä~1.png", "ContentType": "image/png"},
        ExpiresIn=600,
    )
    endpoint = host if style == "virtual" else f"{host}/pictures"
    bucket = Bucket(endpoint, ACCESS, SECRET, "pictures" if style == "virtual" else None)
    ours = bucket.sign("PUT", "a b/ä~1.png", 600, "image/png")
    assert urlsplit(ours)[:3] == urlsplit(expected)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(expected).query)


def test_a_value_of_a_jobs_bucket_may_have_4096_characters() -> None:
    config = {**CREDENTIALS, "endpointUrl": "https://store.test/b", "sessionToken": "t" * 4096}
    assert check_targets(upload_urls=[], s3_config=config, settings=settings.read({})) == ()
    config["sessionToken"] += "t"
    with pytest.raises(InvalidInput) as refused:
        check_targets(upload_urls=[], s3_config=config, settings=settings.read({}))
    (detail,) = refused.value.details
    assert detail.field == "s3Config.sessionToken"
    assert detail.message == "must have at most 4096 characters"
