"""The chat page: the files of `page/`, served as they are.

The policy sent with them lets the page load and reach this server alone, and gives it no way to run text as script:
scripts come from its files, and Trusted Types forbid the rest of the document's ways (`innerHTML` and its like). A
model's answer can therefore do nothing but be shown, whatever the page's own code might get wrong.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked about each time, and answered without a body while it is the same: an upgraded server's page is whole at
    # once, never of two versions.
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """`/` and the files that it loads, below `/page/`. They need no API key: the page asks for it."""
    files = {path.name: _File(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    index = files.pop("index.html")
    return [Route("/", index.answer), *(Route(f"/page/{name}", file.answer) for name, file in files.items())]


class _File:
    """A file in memory; all together have some 120 kB."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.type = TYPES[path.suffix]
        self.etag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'

    async def answer(self, request: Request) -> Response:
        headers = {**HEADERS, "etag": self.etag}
        known = request.headers.get("if-none-match", "")
        if any(tag.strip().removeprefix("W/") == self.etag for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers={**headers, "content-type": self.type})
