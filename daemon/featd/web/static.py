"""The files of the page: style, script and pictures, read once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "no-picture.svg": "image/svg+xml",
}
_folder = files("featd.web") / "static"
_contents = {name: (_folder / name).read_bytes() for name in TYPES}
CACHE: Mapping[str, str] = MappingProxyType({"cache-control": "no-cache"})


def file(name: str, headers: Mapping[str, str] = CACHE) -> Response:
    return Response(_contents[name], media_type=TYPES[name], headers=headers)


async def answer(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _contents:
        raise HTTPException(404)
    return file(name)
