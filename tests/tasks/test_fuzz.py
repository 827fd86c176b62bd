"""Properties that hold for any input; FUZZ_EXAMPLES sets how many are tried (make fuzz: many)."""

import asyncio
import base64
import io
import json
import os
from typing import Any
from urllib.parse import unquote

import pytest
import structlog
from fuzz.strategies import INPUTS, JSON, SEEDS, files, private_urls
from fuzz.targets import sound
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as trying
from hypothesis import strategies as st
from PIL import Image

from worker import log, settings
from worker.edge import reply
from worker.edge.reply import format_answer
from worker.errors import (
    ImageFetchRefused,
    ImageTooLarge,
    ImageUnreadable,
    Internal,
    InvalidInput,
    ModelNotServed,
    OutputTooLarge,
    UnsupportedTask,
    WorkerError,
)
from worker.jobs.serve import Worker
from worker.media import colour, header, images, inline, jpeg, limits, orientation
from worker.media.url import check_url
from worker.settings import Settings
from worker.tasks.request import Query, Request, parse
from worlds.standin import SERVED, StandIns, answered

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FUZZ = trying(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
)

PLAIN = settings.read({})
STRICT = settings.read({"STRICT_INPUT": "1", "ALLOW_HTTP_IMAGES": "1"})
BUDGET = 300_000
SMALL = settings.read(
    {"FETCH_TOTAL_S": "0.2", "MAX_REPLY_BYTES": str(BUDGET), "ALLOWED_IMAGE_HOSTS": "nobody.test"}
)


@FUZZ
@given(st.one_of(INPUTS, JSON), st.sampled_from([PLAIN, STRICT]))
def test_any_json_is_a_request_or_a_fault_of_the_caller(given_: Any, chosen: Settings) -> None:
    try:
        request = parse(given_, [SERVED], chosen)
    except (InvalidInput, UnsupportedTask, ModelNotServed) as error:
        fault: WorkerError | None = error
    else:
        fault = None
        assert isinstance(request, Request | Query)
    if fault is not None:
        assert fault.details
        assert json.dumps(format_answer(reply.make_failure(fault)), allow_nan=False)


@FUZZ
@given(files(), st.sampled_from([500, 100_000]))
def test_any_bytes_are_a_picture_within_budget_or_an_error_of_ours(data: bytes, most: int) -> None:
    try:
        picture = images.decode(data, max_pixels=most)
    except (ImageUnreadable, ImageTooLarge, InvalidInput):
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height <= most
    assert min(picture.size) >= 16
    assert picture.info == {}
    assert len(picture.tobytes()) == 3 * picture.width * picture.height


@FUZZ
@given(files().map(sound), st.just(250_000))
def test_what_pillow_decodes_within_the_limits_we_decode_to_the_same_pixels(
    data: bytes, most: int
) -> None:
    """No reader of ours before the decoder refuses what the decoder takes.

    What is ours on purpose is left out: over 32 scans, colours that are reported, and a colour made
    transparent twice or after the picture.
    """
    kind = header.detect_kind(data)
    assume(kind in images.STRIP)
    assume(data.count(b"\xff\xda") <= jpeg.MAX_SCANS)
    assume(data.count(b"tRNS") < 2)
    assume(not any(name in data for name in (b"iCCP", b"ICC", b"cICP", b"gAMA", b"cHRM")))
    expected = _pillows(data, kind or "", most)
    assume(expected is not None)
    assert expected is not None
    decoded = images.decode(data, most * 2)  # a WEBP has half of it
    assert decoded.size == expected.size
    assert decoded.tobytes() == expected.tobytes()


def _pillows(data: bytes, kind: str, most: int) -> Image.Image | None:
    """Return what Pillow makes of the file, if it does, within our limits."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as opened:
            limits.check_size(*opened.size, most)
            opened.load()
            turned = _orientation(opened)
            return orientation.turn_upright(colour.to_rgb(opened, None, print), turned)
    except Exception:  # noqa: BLE001 - it raises anything
        return None


def _orientation(opened: Image.Image) -> int:
    try:
        value = opened.getexif().get(orientation.ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - it raises anything
        return 1
    return value if isinstance(value, int) else 1


@pytest.mark.parametrize("index", range(len(SEEDS)))
def test_the_seeds_of_the_fuzzers_are_mostly_pictures(index: int) -> None:
    """A fuzzer that starts from rubbish finds rubbish; the last seed alone is broken on purpose."""
    if index == len(SEEDS) - 1:
        with pytest.raises(ImageUnreadable):
            images.decode(SEEDS[index])
    else:
        assert images.decode(SEEDS[index]).size in {(24, 20), (20, 24), (64, 48), (400, 300)}


BASE64 = st.text() | st.text("AZaz09+/-_= \n\t%2BF", max_size=40)
BASE64 |= st.binary(max_size=70).map(lambda data: base64.b64encode(data).decode("ascii"))
BASE64 |= st.binary(max_size=70).map(lambda data: base64.urlsafe_b64encode(data).decode("ascii"))


@FUZZ
@given(BASE64 | BASE64.map("data:image/png;base64,{}".format))
def test_any_text_is_base64_within_budget_or_an_error_of_ours(text: str) -> None:
    """And what is decoded is what its digits say, in either alphabet and whatever the layout."""
    try:
        data = inline.decode_base64(text, 64)
    except (InvalidInput, ImageTooLarge):
        return
    assert 1 <= len(data) <= 64
    body = unquote(text.partition(",")[2]) if text[:5].lower() == "data:" else text
    digits = "".join(body.split()).replace("-", "+").replace("_", "/").rstrip("=")
    canonical = base64.b64encode(data).decode("ascii").rstrip("=")
    # the last digit of a padded group may carry bits that hold nothing
    assert digits[:-1] == canonical[:-1]


@FUZZ
@given(private_urls(), st.sampled_from([PLAIN, STRICT]))
def test_any_private_address_in_any_spelling_is_refused(url: str, chosen: Settings) -> None:
    with pytest.raises(ImageFetchRefused):
        check_url(url, chosen)


@FUZZ
@given(
    st.text() | st.from_regex(r"https?://[!-~]{1,30}(:[0-9]{1,3})?(/[!-~]{0,20})?", fullmatch=True)
)
def test_any_text_is_an_ordinary_url_or_refused(text: str) -> None:
    try:
        url = check_url(text, PLAIN)
    except ImageFetchRefused:
        return
    assert url.scheme == "https"
    assert url.port == 443
    assert url.raw_host
    assert not url.user
    assert not url.password
    host = url.raw_host.lower()
    assert host.isascii()
    assert not any(character in host for character in "\\@/%?# ")


@FUZZ
@given(INPUTS, st.none() | JSON)
def test_any_job_gets_one_reply_of_strict_json_within_the_budget(given_: Any, bucket: Any) -> None:
    words = str(given_.get("prompt", "")) + str(given_.get("text", ""))
    assume("=" not in words and "big" not in words)  # the stand-in takes orders in its prompt
    job: dict[str, Any] = {"id": "job-1", "input": given_}
    if bucket is not None:
        job["s3Config"] = bucket
    answer = asyncio.run(answered(Worker(SMALL, StandIns()), job))
    assert len(json.dumps(answer, allow_nan=False).encode()) <= BUDGET
    assert isinstance(answer.get("error", ""), str)
    assert answer.get("error_code") not in {"INTERNAL", ""}


@FUZZ
@given(JSON, st.integers(0, 2000))
def test_any_reply_is_measured_as_strict_json_or_refused(value: Any, budget: int) -> None:
    try:
        size = reply.measure({"images": value}, budget)
    except (OutputTooLarge, Internal):
        return
    assert size <= budget
    sent = json.dumps({"images": value}, allow_nan=False, ensure_ascii=False)
    assert len(sent.encode()) == size


SECRETS = st.lists(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=20)
    | st.sampled_from(["hf_abcdef", "hf_abcdefghijkl", 'quo"ted\\secret', "AKIDEXAMPLE"]),
    min_size=1,
    max_size=3,
    unique=True,
)


@FUZZ
@given(SECRETS, st.data())
def test_redaction_removes_every_secret_wherever_it_stands(
    secrets: list[str], data: st.DataObject
) -> None:
    def around(secret: str) -> st.SearchStrategy[str]:
        # "]" ends our own mark, "[" begins it: around a secret they prove nothing
        edge = st.text(st.characters(exclude_characters="[]"), max_size=5)
        return st.tuples(edge, st.just(secret), edge).map("".join)

    texts = st.one_of(*(around(secret) for secret in secrets))
    leaf = texts | st.integers() | texts.map(ValueError)
    event = data.draw(
        st.dictionaries(
            st.sampled_from(["reason", "url", "host"]) | texts,
            st.recursive(
                leaf,
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(texts | st.just("name"), inner, max_size=3)
                    | st.tuples(inner, inner)
                ),
                max_leaves=6,
            ),
            min_size=1,
            max_size=3,
        )
    )
    before = set(log._secrets)
    log._secrets.clear()
    log.hide(*secrets)
    try:
        line = structlog.processors.JSONRenderer()(None, "info", log._redact(None, "info", event))
        failed = format_answer(reply.make_failure(InvalidInput(data.draw(texts))))
    finally:
        log._secrets.clear()
        log._secrets.update(before)
    strings: list[str] = []
    _collect(json.loads(line), strings)
    _collect(failed, strings)
    for secret in secrets:
        if not any(secret in word for word in ("[hidden]", "INVALID_INPUT: ", "bad_request")):
            assert not any(secret in text for text in strings), (secret, strings)


def _collect(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        found += value.keys()
        for item in value.values():
            _collect(item, found)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found)
