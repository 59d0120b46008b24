"""Open a session with an OpenAI-compatible server: its address, its key, its models."""

import ipaddress
import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ine.errors import MissingDependency, ObserverError, did_you_mean
from ine.observers.server import ServerAsker, safe_text

if TYPE_CHECKING:
    from openai import OpenAI

log = logging.getLogger("ine")

KEY = "INE_OBSERVER_KEY"
"""Environment variable of the key; the only place where a key is read."""

OPENAI = "api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"
"""Read as well, for OpenAI's own host alone: no other host receives that key."""

LISTED = 20
"""Models of a server that an error names."""


def split_address(text: str) -> tuple[str, str]:
    """Return (URL, model) of URL#MODEL.

    Raises:
        ObserverError: One is missing, or the URL is no web address or holds a secret.
    """
    url, _, model = text.partition("#")
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname, parts.username or parts.password or parts.query
        _ = parts.port
    except ValueError as error:
        raise ObserverError(f"observer openai: the URL cannot be read ({error})") from error
    if secret:
        raise ObserverError(
            "observer openai: the URL holds a user name, password or query, which would end up in "
            f"logs; put the key into the environment variable {KEY}"
        )
    if parts.scheme not in ("http", "https") or not host or not model:
        raise ObserverError(
            f"observer openai:{text}: expected openai:URL#MODEL, such as "
            "openai:http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return url.rstrip("/"), model


def is_local(url: str) -> bool:
    """Return whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_server(
    text: str, parallel: int = 4, timeout: float = 60.0, retries: int = 2
) -> ServerAsker:
    """Return a model of a server, after the server confirmed that it has it.

    Args:
        text: URL#MODEL; the URL ends as the server says, mostly in /v1.
        parallel: Requests at once.
        timeout: Seconds that a request may take to connect, and between two parts of its reply.
        retries: Times that a request is repeated after a time-out, a lost connection, or one of
            the codes 408, 409, 429 and 5xx.

    Raises:
        MissingDependency: The package openai is not installed.
        ObserverError: The address is wrong, the server cannot be reached, wants another key, or
            does not have the model.
    """
    url, model = split_address(text)
    client, secret = open_client(url, timeout, retries)
    if not is_local(url):
        log.warning("pictures leave this machine: they are sent to %s, for %s", url, model)
    name = f"openai:{url}#{model}"
    _check_model(client, name, model, secret)
    return ServerAsker(name, client, model, parallel, secret)


def open_client(url: str, timeout: float, retries: int) -> tuple["OpenAI", str]:
    """Return (a client of a server, the key it was given, "" for none); nothing is sent.

    Raises:
        MissingDependency: The package openai is not installed.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise MissingDependency(
            'observer openai: needs the package openai; run: pip install "ine[vlm]"'
        ) from error
    secret = os.environ.get(KEY, "")
    if not secret and urlsplit(url).hostname == OPENAI:
        secret = os.environ.get(OPENAI_KEY, "")
    # The client reads these from the environment; they are nobody's but OpenAI's business.
    own = None if urlsplit(url).hostname == OPENAI else ""
    # The client refuses to start without a key; servers of one's own mostly want none.
    client = OpenAI(
        api_key=secret or "none",
        base_url=url,
        organization=own,
        project=own,
        timeout=timeout,
        max_retries=retries,
    )
    return client, secret


def _check_model(client: "OpenAI", name: str, model: str, secret: str) -> None:
    """Raise unless a server has a model, as far as it lists those that it has."""
    import openai

    try:
        known = [one.id for one in client.models.list().data]
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        have = f"the one in {KEY} is not accepted" if secret else f"{KEY} is not set"
        raise ObserverError(
            f"observer {name}: the server wants a key, and {have} "
            f"({safe_text(str(error), secret)}); set the environment variable {KEY}"
        ) from error
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise ObserverError(
            f"observer {name}: the server cannot be reached "
            f"({safe_text(f'{type(cause).__name__}: {cause}', secret)}); start it, or correct the "
            "URL (most servers want /v1 at its end)"
        ) from error
    except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
        why = safe_text(f"{type(error).__name__}: {error}", secret)
        log.warning("%s: does not list its models (%s); the first request will show", name, why)
        return
    if known and model not in known:
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise ObserverError(
            f"observer {name}: the server does not have {model!r}{did_you_mean(model, known)}; it "
            f"has: {', '.join(known[:LISTED])}{more}"
        )
