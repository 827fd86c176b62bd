"""Jobs whose URLs are malformed, lead inward, or lead to a site or a store that misbehaves."""

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from corpus.case import Case, draw, edit, job
from corpus.pictures import GOOD, LARGE, UNREADABLE

from worlds.site import INSIDE, Site

REFUSED: Final = "IMAGE_FETCH_REFUSED"
FAILED: Final = "IMAGE_FETCH_FAILED"
# for sites that would take for ever
HASTY: Final = {"FETCH_TOTAL_S": "0.7", "FETCH_CONNECT_S": "0.5"}


def at(path: str) -> Callable[[Site], dict[str, Any]]:
    """Return an edit job of the site's `path`; {http}, {https}, {port} stand for where it is."""

    def make(site: Site) -> dict[str, Any]:
        url = path.replace("{http}", site.http).replace("{https}", site.https)
        url = url.replace("{port}", str(site.http_port)).replace("{tls}", str(site.https_port))
        return {"input": {"prompt": "a cat", "seed": 1, "image": url}}

    return make


def upload(**target: Any) -> Callable[[Site], dict[str, Any]]:
    """Return a good job that wants its picture somewhere bad; {port} stands for the site's."""

    def make(site: Site) -> dict[str, Any]:
        filled = {
            key: value.replace("{http}", site.http).replace("{port}", str(site.http_port))
            if isinstance(value, str)
            else value
            for key, value in target.items()
        }
        given: dict[str, Any] = {"input": {"prompt": "a cat", "seed": 1, "response_format": "url"}}
        if "endpointUrl" in filled:
            keys = {"accessId": "AKIDEXAMPLE", "accessSecret": "hidden-secret-of-a-caller"}
            given["s3Config"] = {**keys, **filled}
        else:
            given["input"] |= filled
        return given

    return make


HOST_ALIKES: Final = {
    "a circled digit": "\u2460.test",
    "a trademark sign": "site.tes\u2122",
    "a wide dot": "site\uff0etest",
    "a blank": "site\u00a0.test",
    "nothing": "si\u00adte.test",
    "a wide at sign": "a\uff20site.test",
    "digits of Devanagari": "127.0.0.\u0967",
}
# Characters that stood in the way of a picture, behind a host that may be asked.
PATHS: Final = {
    "blanks": "/a b\u00a0\u202f.png",
    "brackets and ideographs": "/\u56fe\u7247\uff081\uff09.png",
    "a numeral": "/\u7b2c\u4e09\u7ae0.png",
    "a circled digit": "/\u2460.png",
    "a trademark sign": "/Brand\u2122.png",
    "marks of direction": "/\u202ea\u200b.png",
    "quotes": '/"a"<b>.png',
    "a query": "/good.png?q=\u00bd x",
}

SYNTAX: Final = [
    *(
        Case("URL syntax", f"host with {name}", draw(image=f"https://{host}/x.png"), REFUSED)
        for name, host in HOST_ALIKES.items()
    ),
    *(
        Case("URL syntax", f"path with {name}", at("{http}" + path), None)
        for name, path in PATHS.items()
    ),
    *(
        Case("URL syntax", f"redirect to {name}", at("{http}/to?url=" + quote(path, safe="")), None)
        for name, path in PATHS.items()
    ),
    Case(
        "URL syntax",
        "host in another script",
        at("http://\u4e09\u661f.example:{port}/good.png"),
        None,
    ),
    *(
        Case("URL syntax", url, draw(image=url), REFUSED)
        for url in (
            "https://",
            "https:///x.png",
            "http://site.test/x.png",
            "ftp://site.test/x.png",
            "file:///etc/passwd",
            "gopher://127.0.0.1:6379/_FLUSHALL",
            "https://site.test:22/x.png",
            "https://site.test:99999/x.png",
            "https://site.test:4\uff143/x.png",
            "https://user:password@site.test/x.png",
            "https://site.test@127.0.0.2/x.png",
            "https://site.test\\@127.0.0.2/x.png",
            "https://site.test/\r\nHost:inside",
            "https://site.test/\0.png",
            "https://127.0.0.1/x.png",
            "https://127.1/x.png",
            "https://2130706433/x.png",
            "https://0x7f000001/x.png",
            "https://017700000001/x.png",
            "https://127.0.0.1./x.png",
            "https://\u2460\u2461\u2466.0.0.1/x.png",
            "https://127\u30020\u30020\u30021/x.png",
            "https://[::1]/x.png",
            "https://[::ffff:169.254.169.254]/x.png",
            "https://[64:ff9b::a9fe:a9fe]/x.png",
            "https://[fe80::1%25eth0]/x.png",
            "https://169.254.169.254/latest/meta-data/",
            "https://168.63.129.16/x.png",
            "https://100.100.100.200/x.png",
            "https://" + "a" * 64 + ".test/x.png",
            "https://site.test/" + "a" * 9000,
        )
    ),
    Case("URL syntax", "no scheme", draw(image="//site.test/x.png")),
    Case("URL syntax", "javascript", draw(image="javascript:alert(1)")),
    Case("URL syntax", "blob", draw(image="blob:https://site.test/1-2-3-4-5-6")),
]

BEHAVIOUR: Final = [
    Case("URL behaviour", "name inside", at("http://inside.test:{port}/x.png"), REFUSED),
    Case("URL behaviour", "name inside, TLS", at("https://inside.test:{tls}/x.png"), REFUSED),
    Case("URL behaviour", "one address inside", at("http://mixed.test:{port}/x.png"), REFUSED),
    Case("URL behaviour", "mapped address", at("http://mapped.test:{port}/x.png"), REFUSED),
    Case("URL behaviour", "metadata by name", at("https://metadata.test/latest/"), REFUSED),
    Case("URL behaviour", "localhost", at("http://localhost:{port}/good.png"), REFUSED),
    Case("URL behaviour", "turning name", at("http://turning.test:{port}/good.png"), REFUSED),
    Case("URL behaviour", "no such name", at("https://nosuch.test:{tls}/x.png"), FAILED),
    Case("URL behaviour", "silent name server", at("https://silent.test:{tls}/x.png"), FAILED,
         HASTY),
    Case("URL behaviour", "wrong certificate", at("https://stranger.test:{tls}/good.png"), FAILED),
    Case("URL behaviour", "redirect inside", at("{http}/to?url=http://127.0.0.2:{port}/"), REFUSED),
    Case("URL behaviour", "redirect to a name inside",
         at("{http}/to?url=http://inside.test:{port}/x.png"), REFUSED),
    Case("URL behaviour", "redirect to metadata",
         at("{http}/to?url=http://169.254.169.254/latest/meta-data/"), REFUSED),
    Case("URL behaviour", "redirect to a file", at("{http}/to?url=file:///etc/passwd"), REFUSED),
    Case("URL behaviour", "redirect down to http", at("{https}/to?url={http}/good.png"), REFUSED),
    Case("URL behaviour", "redirect with a password",
         at("{http}/to?url=http://a:b@127.0.0.1:{port}/good.png"), REFUSED),
    Case("URL behaviour", "redirect to nowhere", at("{http}/nowhere"), FAILED),
    Case("URL behaviour", "redirect for ever", at("{http}/to?url={http}/hops/9"), FAILED),
    Case("URL behaviour", "404", at("{http}/status/404"), FAILED),
    Case("URL behaviour", "500", at("{http}/status/500"), FAILED),
    Case("URL behaviour", "204", at("{http}/status/204"), FAILED),
    Case("URL behaviour", "206", at("{http}/partial"), FAILED),
    Case("URL behaviour", "a sign-in page", at("{http}/html"), UNREADABLE),
    Case("URL behaviour", "an empty page", at("{http}/status/200"), UNREADABLE),
    Case("URL behaviour", "never ends", at("{http}/endless"), LARGE),
    Case("URL behaviour", "claims 99 GB", at("{http}/claims?bytes=99999999999"), LARGE),
    Case("URL behaviour", "a byte every 100 ms", at("{http}/drip"), FAILED, HASTY),
    Case("URL behaviour", "never answers", at("{http}/silent"), FAILED, HASTY),
]  # fmt: skip

PROTOCOL: Final = [
    *(
        Case("protocol", path, at("{http}/" + path), FAILED)
        for path in (
            "short",
            "cut-chunks",
            "bad-chunks",
            "both-lengths",
            "two-lengths",
            "no-http",
            "nothing",
            "header-flood",
            "long-header",
            "upgrade",
        )
    ),
    *(
        Case("protocol", f"encoding {name or 'empty'}",
             at("{http}/coded/good.png?as=" + quote(name)), None)
        for name in ("", "base64", "aws-chunked", "none", "utf-8", "identity", "gzip", "br, zstd")
    ),
    *(
        Case("protocol", f"packed by {name}", at("{http}/coded/packed?as=" + quote(name)), None)
        for name in ("gzip", "X-GZIP", "identity, gzip")
    ),
    Case("protocol", "a bomb of gzip", at("{http}/coded/bomb?as=gzip"), LARGE),
    Case("protocol", "a bomb in a bomb", at("{http}/coded/bombs?as=gzip,gzip"), LARGE),
    Case("protocol", "broken gzip", at("{http}/coded/broken?as=gzip"), FAILED),
    Case("protocol", "packed four times", at("{http}/coded/packed?as=br,br,br,gzip"), FAILED),
    *(
        Case("protocol", path, at("{http}/" + path), FAILED, HASTY)
        for path in ("continue-flood", "slow-head")
    ),
    Case("protocol", "endless chunks", at("{http}/endless-chunks"), LARGE),
    Case("protocol", "endless chunks of a byte", at("{http}/tiny-chunks"), LARGE,
         {"MAX_IMAGE_BYTES": "100000"}),
    Case("protocol", "http spoken to https", at("http://127.0.0.1:{tls}/good.png"), FAILED),
    Case("protocol", "https spoken to http", at("https://site.test:{port}/good.png"), FAILED,
         HASTY),
]  # fmt: skip

UPLOADS: Final = [
    Case("upload targets", "inside", upload(upload_url=f"http://{INSIDE}:{{port}}/x"), REFUSED),
    Case("upload targets", "name inside",
         upload(upload_url="http://inside.test:{port}/x"), REFUSED),
    Case("upload targets", "metadata", upload(upload_url="https://169.254.169.254/x"), REFUSED),
    Case("upload targets", "http", upload(upload_url="http://site.test/x"), REFUSED),
    Case("upload targets", "password", upload(upload_url="https://a:b@site.test/x"), REFUSED),
    Case("upload targets", "other port", upload(upload_url="https://site.test:22/x"), REFUSED),
    Case("upload targets", "a file", upload(upload_url="file:///runpod-volume/x.png")),
    Case("upload targets", "a path", upload(upload_url="/runpod-volume/x.png")),
    Case("upload targets", "backslash", upload(upload_url="https://a.test\\@b.test/"), REFUSED),
    Case("upload targets", "two for one picture", upload(upload_url=["https://a.test/x", "https://a.test/y"])),
    Case("upload targets", "a number", upload(upload_url=7)),
    Case("upload targets", "forbidden", upload(upload_url="{http}/forbidden"), "DELIVERY_FAILED"),
    Case("upload targets", "redirected inside",
         upload(upload_url="{http}/redirected"), "DELIVERY_FAILED"),
    Case("upload targets", "endpoint inside",
         upload(endpointUrl=f"http://{INSIDE}:{{port}}", bucketName="b"), REFUSED),
    Case("upload targets", "endpoint name inside",
         upload(endpointUrl="http://inside.test:{port}", bucketName="b"), REFUSED),
    Case("upload targets", "endpoint metadata",
         upload(endpointUrl="https://169.254.169.254", bucketName="b"), REFUSED),
    Case("upload targets", "endpoint http",
         upload(endpointUrl="http://s.test", bucketName="b"), REFUSED),
    Case("upload targets", "endpoint with a password",
         upload(endpointUrl="https://a:b@s.test", bucketName="b"), REFUSED),
    Case("upload targets", "endpoint a file", upload(endpointUrl="file:///x", bucketName="b")),
    Case("upload targets", "no bucket", upload(endpointUrl="https://store.test")),
    Case("upload targets", "bucket a list", upload(endpointUrl="https://s.test", bucketName=["b"])),
    Case("upload targets", "no keys",
         job({"prompt": "a cat"}, s3Config={"endpointUrl": "https://s.test/b"})),
    Case("upload targets", "too many fields for base64",
         edit(GOOD, upload_url="https://s.test/x", response_format="base64")),
]  # fmt: skip

CASES: Final = [*SYNTAX, *BEHAVIOUR, *PROTOCOL, *UPLOADS]
