"""The connection to an endpoint: proxies and certificates of the environment, and what headers say of waiting."""

from __future__ import annotations

import ipaddress
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from realm.serving.faults import EndpointError

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def is_loopback(url: str) -> bool:
    """Whether an address is this machine, by its name or number."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def http_client(url: str, before: Callable[..., Awaitable[None]]) -> openai.DefaultAsyncHttpxClient:
    """A client for ``url``; ``before`` is awaited before each request.

    This machine is never asked through a proxy, which would get key and text and cannot come back here.
    Raises EndpointError naming the variable of the environment that keeps it from being made.
    """
    hooks = {"request": [before]}
    try:
        return openai.DefaultAsyncHttpxClient(event_hooks=hooks, trust_env=not is_loopback(url))
    except ImportError:
        name = _first_set(PROXIES, "socks")
        why = f"{name} names a SOCKS proxy, for which the package socksio is missing; pip install socksio, or unset it"
    except ssl.SSLError:
        name = _first_set(CERTIFICATES)
        why = f"{name} names a file that holds no certificates; correct or unset it"
    except OSError:
        name = _first_set(CERTIFICATES, missing=True)
        why = f"{name} names a file that is not there or cannot be read; correct or unset it"
    except Exception:  # noqa: BLE001  (of the network library that the package has chosen, not ours to name)
        name = _first_set(PROXIES)
        why = f"{name} holds no address of a proxy that is understood, such as http://host:port; correct or unset it"
    raise EndpointError("refused", f"{url}: the environment variable {why}")


def _first_set(names: tuple[str, ...], prefix: str = "", missing: bool = False) -> str:
    """The first of these variables that is set, in capitals or not; never its value, which may hold a password."""
    cased = [n for name in names for n in (name, name.lower())]
    found = [n for n in cased if os.environ.get(n, "").startswith(prefix) and os.environ.get(n)]
    return next((n for n in found if missing and not Path(os.environ[n]).exists()), next(iter(found), names[0]))


def split_query(url: str) -> tuple[str, dict[str, str]]:
    """(address, query) of an address with one, as Azure's ``?api-version=...``: paths are added before it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="", fragment="")), dict(parse_qsl(parts.query))


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that a service asks to be left alone (``Retry-After``, as a number or a date), or None."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return float(milliseconds) / 1000
        value = headers.get("retry-after")
        if value is None:
            return None
        return (
            float(value)
            if value.replace(".", "").isdecimal()
            else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except ValueError:
        return None
