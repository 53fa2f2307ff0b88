"""The page for people: one document, which asks no other host for anything."""

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response


def add_page(app: FastAPI) -> None:
    """Adds the page at "/"."""
    html = page()
    headers = {
        "Content-Security-Policy": content_policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    @app.get("/")
    async def _() -> Response:
        return HTMLResponse(html, headers=headers)


def page() -> str:
    """The document, with its style and its script inside."""

    def read(name: str) -> str:
        return resources.files("ssjax.serving").joinpath(name).read_text(encoding="utf-8")

    html = read("page.html")
    for name in ("page.css", "page.js"):
        html = html.replace(f"{{{name}}}", f"\n{read(name)}")
    return html


def content_policy(html: str) -> str:
    """Lets the page run its own script and style and talk to this server, and nothing else."""

    def digest(tag: str) -> str:
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
        f"style-src 'sha256-{digest('style')}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
