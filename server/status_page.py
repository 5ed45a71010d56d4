"""The status page: one HTML file, which loads nothing but `/live` and `/slo`."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from server.reply import Reply

KIND = "text/html; charset=utf-8"


@cache
def page() -> Reply:
    """The page, with a policy that lets a browser run nothing but what stands in it."""
    body = (resources.files("server") / "page" / "index.html").read_bytes()
    return Reply(
        body,
        KIND,
        headers=(
            ("Content-Security-Policy", policy(body)),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-cache"),
        ),
    )


def policy(body: bytes) -> str:
    """Allows the page's own script and style by their hashes, and requests to where it came from."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(body, b'script')}",
            f"style-src {_hashes(body, b'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashes(body: bytes, tag: bytes) -> str:
    inside = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in inside)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
