"""Asks a server something by HTTP, with a limit, past every proxy and without following redirects."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Any

_BODY_LIMIT = 16 * 1024 * 1024


class NoAnswer(Exception):
    """There was no answer by HTTP; says why."""


class _StayHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def status_of(url: str, limit: float) -> int:
    """Return the status that a GET is answered with; each silence of the server may take `limit` seconds."""
    return _get(url, limit, body=False)[0]


def text_of(url: str, limit: float) -> str:
    """Return the body of a GET as text, empty if its status tells of an error."""
    return _get(url, limit, body=True)[1]


def _opener() -> urllib.request.OpenerDirector:
    # A proxy of the environment must not be asked for a server on this machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _StayHere())


def _get(url: str, limit: float, body: bool) -> tuple[int, str]:
    try:
        with _opener().open(url, timeout=limit) as answer:
            return answer.status, answer.read(_BODY_LIMIT).decode("utf-8", "replace") if body else ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except urllib.error.URLError as error:
        raise NoAnswer(_reason(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(_reason(error)) from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
        return f"no HTTP ({type(error).__name__})"
    return str(error) or type(error).__name__
