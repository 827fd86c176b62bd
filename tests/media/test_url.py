"""A URL is checked by its host and sent percent-encoded; signed paths go out as they were made."""

import string
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import settings
from worker.errors import ImageFetchRefused
from worker.media.url import MAX_URL_CHARACTERS, check_url, encode_host

PLAIN = settings.read({})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https:",
        "https://",
        "https:///x.png",
        "https:x.png",
        "https:/site.test/x.png",
        "//site.test/x.png",
        "site.test/x.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://site.test/x.png",
        "javascript://site.test/%0a",
        "blob:https://site.test/1",
        "https://site.test:0/x.png",
        "https://site.test:22/x.png",
        "https://site.test:65536/x.png",
        "https://site.test:443443/x.png",
        "https://site.test:+443/x.png",
        "https://site.test:4\uff143/x.png",
        "https://site.test:/x.png:22",
        "https://user@site.test/x.png",
        "https://user:secret@site.test/x.png",
        "https://@site.test/x.png",
        "https://site.test\\@inside.test/x.png",
        "https://site.test#@inside.test:22/x.png\\",
        "https:\\\\site.test\\x.png",
        "https://site.test/x\ty.png",
        "https://site.test/\r\nHost: inside.test",
        "https://site.test/\x00",
        "https://site\u00ad.test\u200b/x.png",
        "https://\uff53ite.test/x.png",
        "https://site\u3002test/x.png",
        "https://1\uff127.0.0.1/x.png",
        "https://site.test/x\x7fy.png",
        "https://site.test/x\x85y.png",
        "https://site.test/x\ny.png?",
        "https://site.test/?x\0y",
        "https://site.test/#x\x1by",
        "https://site.test/\ud83d.png",
        "https://site.test/a\\b.png",
        "https://site.test/" + "\u4e09" * 910,
        "https:// site.test/x.png",
        "https://site.test /x.png",
        "https://site\u00a0.test/x.png",
        "https://\u2460.test/x.png",
        "https://site.tes\u2122/x.png",
        "https://s\u0131te\u00ad.test/x.png",
        "https://\u212a.test/x.png",
        "https://\u00bd.test/x.png",
        "https://site\uff0etest/x.png",
        "https://site\uff61test/x.png",
        "https://site.test\uff0fx.png",
        "https://site.test\uff03x.png",
        "https://site.test\uff1a443/x.png",
        "https://a\uff20site.test/x.png",
        "https://site.test\u2044x.png",
        "https://site\u2024test/x.png",
        "https://127.0.0.\u0967/x.png",
        "https://a.\u0967./x.png",
        "https://a.0x7f./x.png",
        "https://127.0.0.\u0661/x.png",
        "https://a.\u0967\u0968\u0969/x.png",
        "https://\u0967\u0968\u0969/x.png",
        "https://a.\U0001d7d9/x.png",
        "https://\U0001f600\u200d.test:22/x.png",
        "https://\u0301.test/x.png",
        "https://xn--\u4e09.test/x.png",
        "https://si%74e.test/x.png",
        "https://site..test/x.png",
        "https://.test/x.png",
        "https://-/../x.png\\",
        "https://[::1/x.png",
        "https://[]/x.png",
        "https://[v1.a]/x.png",
        "https://[site.test]/x.png",
        "https://" + "a" * 64 + ".test/x.png",
        "https://" + "a." * 130 + "test/x.png",
        "https://site.test/" + "a" * 9000,
        "https://site!.test/x.png",
        "https://site,other.test/x.png",
        "https://<site>.test/",
        "https://_8.8.8.8/x.png",
        "_https://site.test/x.png",
    ],
)
def test_a_url_that_parsers_may_read_differently_is_refused(url: str) -> None:
    with pytest.raises(ImageFetchRefused):
        check_url(url, settings.read({"ALLOW_HTTP_IMAGES": "1"}))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "https://EXAMPLE.COM/A.png",
        "https://example.com",
        "https://example.com?x=1",
        "https://example.com.:443/a~b%7Ec.png?X-Amz-Signature=a%2Fb&x=%20#f",
        "https://a_b.example.com/(1).png",
        "https://r-.example.com/-/x.png",
        "https://xn--bcher-kva.example/a:b@c.png",
        "https://example.com/a%2fb/%E4%B8%89/../%2e%2e/b+c//d;v=1,2!$&'()*=.png",
        "https://example.com/%zz/100%.png?q=%&r=50%25",
        "https://example.com/a?b=c?d=/e&f='g'&h[0]=|1|&i={j}^`k`",
        "https://example.com/[1]|2.png",
        "https://example.com/a_b?c_d=e_f#g_h",
        "https://example.com/_",
        "https://example.com/?_",
        "https://a.1_/x.png",
        "https://_a.example.com/x.png",
    ],
)
def test_an_ordinary_url_passes_as_it_was_written(url: str) -> None:
    checked = check_url(url, PLAIN)
    written = urlsplit(url)
    assert (checked.raw_path, checked.raw_query_string) == (written.path or "/", written.query)
    assert checked.raw_host == written.hostname


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a b.png", "/a%20b.png"),
        ("/a\u00a0b\u202fc\u3000d.png", "/a%C2%A0b%E2%80%AFc%E3%80%80d.png"),
        ("/\u56fe\u7247\uff081\uff09.png", "/%E5%9B%BE%E7%89%87%EF%BC%881%EF%BC%89.png"),
        ("/\u7b2c\u4e09\u7ae0.png", "/%E7%AC%AC%E4%B8%89%E7%AB%A0.png"),
        ("/\u2460.png", "/%E2%91%A0.png"),
        ("/Brand\u2122.png", "/Brand%E2%84%A2.png"),
        (
            "/\uff21\uff10\uff0e\uff0f\u3002\u0663",
            "/%EF%BC%A1%EF%BC%90%EF%BC%8E%EF%BC%8F%E3%80%82%D9%A3",
        ),
        (
            "/\u200b\u202e\u2066\u00ad\ufeff\u2028",
            "/%E2%80%8B%E2%80%AE%E2%81%A6%C2%AD%EF%BB%BF%E2%80%A8",
        ),
        ("/\U0001f600e\u0301\ue000.png", "/%F0%9F%98%80e%CC%81%EE%80%80.png"),
        ('/a"b<c>d^e`f{g}h.png', "/a%22b%3Cc%3Ed%5Ee%60f%7Bg%7Dh.png"),
        ("/a%20b c%2Fd\u00e9.png", "/a%20b%20c%2Fd%C3%A9.png"),
        ('?q=a b\u00e9"<>#x', "/?q=a%20b%C3%A9%22%3C%3E#x"),
        ("/x?a=\u4e09&b=%E4%B8%89", "/x?a=%E4%B8%89&b=%E4%B8%89"),
        ("/x#a b`\u4e09", "/x#a%20b%60%E4%B8%89"),
        ("/x  ", "/x"),
        ("", ""),
        ("?#", ""),
    ],
)
def test_the_rest_is_percent_encoded_as_browsers_do(written: str, sent: str) -> None:
    checked = check_url(f"https://example.com{written}", PLAIN)
    assert str(checked) == f"https://example.com{sent}"
    assert check_url(str(checked), PLAIN) == checked


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("\u4e09\u661f.example", "xn--ehq000d.example"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.Example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("\ud55c\uad6d.kr", "xn--3e0b707e.kr"),
        ("stra\u00dfe.de", "xn--strae-oqa.de"),
        ("\u03bf\u03c5\u03c4\u03bf\u03c0\u03af\u03b1.gr", "xn--kxae4bafwg.gr"),
        (
            "\u043f\u0440\u0435\u0437\u0438\u0434\u0435\u043d\u0442.\u0440\u0444",
            "xn--d1abbgf6aiiy.xn--p1ai",
        ),
        ("\u0645\u062b\u0627\u0644.example", "xn--mgbh0fb.example"),
        ("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example", "xn--mgba3gch31f060k.example"),
        ("\u0928\u0947\u091f\u0935\u0930\u094d\u0915.example", "xn--11bt0a7aya0ixb.example"),
        ("sa\u011fl\u0131k.example", "xn--salk-1wa3i.example"),
        ("\u65e5\u672c\u8a9e.example.", "xn--wgv71a119e.example."),
        ("a_b.\u4e2d\u56fd", "a_b.xn--fiqs8s"),
        ("\u2603.net", "xn--n3h.net"),
        ("i\u2764.ws", "xn--i-7iq.ws"),
        ("XN--bcher-KVA.example", "xn--bcher-kva.example"),
        ("\u4e09.1_", "xn--ehq.1_"),
    ],
)
def test_a_host_in_another_script_is_its_punycode(host: str, name: str) -> None:
    checked = check_url(f"https://{host}/x.png", PLAIN)
    assert checked.raw_host == name
    assert checked.raw_path == "/x.png"


@pytest.mark.parametrize("letter", ["a", "\u00e9", " ", "\u4e09"])
def test_a_url_may_be_as_long_as_a_request_line(letter: str) -> None:
    """Counted as it is sent: a letter of another script takes up to 12 characters."""
    start = "https://site.test/"
    sent = len(check_url(start + letter + "x", PLAIN).raw_path) - 2
    count, rest = divmod(MAX_URL_CHARACTERS - len(start), sent)
    longest = start + letter * (count - 1) + "x" * (sent + rest)
    assert len(str(check_url(longest, PLAIN))) == MAX_URL_CHARACTERS == 8190
    with pytest.raises(ImageFetchRefused, match="at most 8190 characters"):
        check_url(longest + "x", PLAIN)


def test_allowed_hosts_may_be_written_in_their_own_script() -> None:
    names = "b\u00fccher.example, *.\u4e09\u661f.example, \u2460.example"
    given_ = settings.read({"ALLOWED_IMAGE_HOSTS": names})
    for host in ("b\u00fccher.example", "xn--bcher-kva.example", "cdn.\u4e09\u661f.example"):
        assert check_url(f"https://{host}/x.png", given_)
    for host in ("\u4e09\u661f.example", "x.b\u00fccher.example", "1.example"):
        with pytest.raises(ImageFetchRefused, match="host"):
            check_url(f"https://{host}/x.png", given_)


def test_an_underscore_around_a_name_makes_it_another() -> None:
    given_ = settings.read({"ALLOWED_IMAGE_HOSTS": "site.test, *.other.test, third.test_"})
    for host in ("_site.test", "site.test_", "a.other.test_", "third.test"):
        with pytest.raises(ImageFetchRefused, match="allows"):
            check_url(f"https://{host}/x.png", given_)
    assert check_url("https://third.test_/x.png", given_)


def test_blanks_around_a_url_are_no_part_of_it() -> None:
    assert str(check_url("  https://example.com/x.png ", PLAIN)) == "https://example.com/x.png"
    assert str(check_url("HTTPS://Example.com:443/X", PLAIN)) == "https://example.com/X"


def test_a_dot_after_a_name_changes_nothing_about_what_is_allowed() -> None:
    given_ = settings.read({"ALLOWED_IMAGE_HOSTS": "site.test., *.other.test."})
    for host in ("site.test", "site.test.", "a.other.test", "a.b.other.test."):
        assert check_url(f"https://{host}/x.png", given_)
    for host in ("other.test", "another.test", "a.site.test", "site.test.other"):
        with pytest.raises(ImageFetchRefused, match="allows"):
            check_url(f"https://{host}/x.png", given_)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https:/site.test/x.png", "begin with https://"),
        ("https://a:b@site.test/x.png", "user name or password"),
        ("https://site.test:0/x.png", "port only in digits"),
        ("https://site.test:x/x.png", "port only in digits"),
        ("https://\uff11.test/x.png", "look-alikes"),
        ("https://site.test\\x.png", "backslash"),
        ("https://site.test/\x00", "control characters"),
        ("https://10.0.0.1/x.png", "public address"),
        ("https://1.2.3/x.png", "usual spelling"),
        ("https://site!.test/x.png", "usual spelling"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_url(url: str, message: str) -> None:
    with pytest.raises(ImageFetchRefused, match=message):
        check_url(url, PLAIN)


def test_a_refused_port_is_explained_by_what_the_operator_allows() -> None:
    open_ = settings.read({"ALLOW_HTTP_IMAGES": "1"})
    for port in (80, 8443, 65535, 65536, 99999):
        with pytest.raises(ImageFetchRefused, match="https://, and use port 443"):
            check_url(f"https://site.test:{port}/", PLAIN)
    for url in ("https://site.test:80/", "http://site.test:443/", "http://site.test:65536/"):
        with pytest.raises(ImageFetchRefused, match="port 443, or 80 for http"):
            check_url(url, open_)
    for url in ("http://site.test:80/", "http://site.test/"):
        assert check_url(url, open_).port == 80


def test_a_host_that_is_an_address_keeps_its_brackets_and_its_port() -> None:
    given_ = settings.read({"ALLOWED_IMAGE_NETWORKS": "[fd00::]/8:8443"})
    assert str(check_url("https://[fd00::1]:8443/x", given_)) == "https://[fd00::1]:8443/x"
    with pytest.raises(ImageFetchRefused, match="public"):
        check_url("https://[fe80::1]:8443/x", given_)


@given(st.text(), st.text(), st.text())
def test_whatever_follows_the_host_is_printable_ascii_or_refused(
    path: str, query: str, fragment: str
) -> None:
    try:
        checked = check_url(f"https://example.com/{path}?{query}#{fragment}", PLAIN)
    except ImageFetchRefused:
        bad = {chr(point) for point in (*range(32), *range(0x7F, 0xA0), ord("\\"))}
        assert bad & set(path + query + fragment) or any(
            "\ud800" <= x <= "\udfff" for x in path + query + fragment
        )
        return
    allowed = set(string.digits + string.ascii_letters + string.punctuation)
    assert set(str(checked)) <= allowed
    assert checked.raw_host == "example.com"
    assert str(checked).startswith("https://example.com/")


@given(st.text(st.characters(min_codepoint=0x80), min_size=1, max_size=8), st.booleans())
def test_no_host_becomes_another_ascii_name(host: str, last: bool) -> None:
    """What is dialled is punycode or what was written, never letters out of look-alikes."""
    name = f"www.{host}" if last else f"{host}.example"
    try:
        asked = encode_host(name)
    except UnicodeError:
        return
    kept = asked.removeprefix("www.") if last else asked.removesuffix(".example")
    assert kept.startswith("xn--")
