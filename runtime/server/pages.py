"""The playground: three static files. They hold no secret and need no key; what they ask the API does."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI, Response

PATHS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/playground.css": ("playground.css", "text/css; charset=utf-8"),
    "/playground.js": ("playground.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    # Nothing from elsewhere, nothing inline, in nobody's frame: the page holds the user's key.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_pages(app: FastAPI) -> None:
    """Adds the routes of the playground."""
    folder = resources.files("runtime.server") / "playground"
    for path, (name, media_type) in PATHS.items():
        _add_page(app, path, (folder / name).read_bytes(), media_type)


def _add_page(app: FastAPI, path: str, body: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(body, headers=_HEADERS, media_type=media_type)
