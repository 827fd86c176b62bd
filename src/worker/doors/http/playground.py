"""The page at /: files of this package, and the policy that keeps it to its own origin."""

from http import HTTPStatus
from pathlib import Path
from typing import Final

from aiohttp import web

from worker.doors.http.responses import Refused, make_json

FOLDER: Final = Path(__file__).parent / "page"
TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES: Final = {file.name: file for file in sorted(FOLDER.iterdir()) if file.suffix in TYPES}
# Where requests of other programs go, which the page itself cannot know.
PLACE: Final = "/page/place.json"
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' data: blob:; media-src 'self' data: blob:;"
        " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def list_paths() -> tuple[str, ...]:
    """Return the paths of the page: they need no key, and ask for it themselves."""
    return ("/", PLACE, *(f"/page/{name}" for name in FILES))


def list_page_routes(*, jobs: str, openai: str, variable: str | None) -> list[web.RouteDef]:
    """Return the routes of the page.

    `jobs` and `openai` are the bases of RunPod's routes and of OpenAI's in the requests that the
    page shows for other programs, addresses or relative to the page; `variable` is the environment
    variable that has their key, None if they need none.
    """
    place = {"jobs": jobs, "openai": openai, "variable": variable}

    async def show_place(_: web.Request) -> web.Response:
        return make_json(place)

    return [web.get("/", _show), web.get(PLACE, show_place), web.get("/page/{name}", _show)]


async def _show(request: web.Request) -> web.Response:
    file = FILES.get(request.match_info.get("name", "index.html"))
    if file is None:
        raise Refused(HTTPStatus.NOT_FOUND, "not_found", "the page has no such file")
    body = file.read_bytes()
    return web.Response(
        body=body, content_type=TYPES[file.suffix], charset="utf-8", headers=HEADERS
    )
