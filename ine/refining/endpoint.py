"""A server with an OpenAI-compatible images endpoint as a generator."""

import base64
import binascii
import io
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ine.errors import IneError, ObserverError, PicturesError
from ine.observers.server import REFUSES_FORMAT, safe_text
from ine.observers.server_opening import is_local, open_client, split_address
from ine.pictures import MAX_PIXELS
from ine.refining.commands import stacked
from ine.refining.rounds import Made
from ine.sampling import PictureRequest

if TYPE_CHECKING:
    from openai import OpenAI

log = logging.getLogger("ine")


@dataclass(frozen=True, kw_only=True)
class EndpointGenerator:
    """Asks `URL/images/generations` for one picture per prompt, several at once."""

    name: str
    client: "OpenAI"
    model: str
    size: str | None = None
    """ "WIDTHxHEIGHT"; None leaves it to the server."""

    more: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the request, such as `negative_prompt` or `num_inference_steps`, where the
    server knows them."""

    seeds: bool = True
    """Whether the seed is sent; a server that declines it has its own noise."""

    batch: int = 4
    """Requests at once."""

    secret: str = ""

    def __call__(self, requests: Sequence[PictureRequest]) -> Made:
        """Return the pictures.

        Raises:
            ObserverError: The server cannot be reached, or declines a request.
            PicturesError: A reply has no picture, or it is broken, or sizes differ.
        """
        with ThreadPoolExecutor(max_workers=self.batch) as pool:
            pictures = list(pool.map(self._ask, requests))
        return stacked(pictures, self.name), [{} for _ in requests], [0] * len(requests)

    def _ask(self, request: PictureRequest) -> np.ndarray:
        import openai

        try:
            return self._picture(self._send(request), request.prompt)
        except openai.OpenAIError as error:
            why = safe_text(f"{type(error).__name__}: {error}", self.secret)
            raise ObserverError(
                f"{self.name}: gave no picture for {request.prompt[:60]!r} ({why}); what is "
                "finished is kept; repair the server and give the same command again"
            ) from error

    def _send(self, request: PictureRequest) -> Any:
        """Send one request: pictures inside the reply, where the server lets us say so."""
        import openai

        more = {**self.more, **({"seed": request.seed} if self.seeds else {})}
        given: dict[str, Any] = {"size": self.size} if self.size else {}
        ask = self.client.images.generate
        try:
            return ask(
                model=self.model,
                prompt=request.prompt,
                n=1,
                response_format="b64_json",
                extra_body=more,
                **given,
            )
        except openai.APIStatusError as error:
            # Some models always reply so and decline to be asked for it.
            if error.status_code not in REFUSES_FORMAT or "response_format" not in str(error):
                raise
            return ask(model=self.model, prompt=request.prompt, n=1, extra_body=more, **given)

    def _picture(self, reply: Any, prompt: str) -> np.ndarray:
        """Return the picture of a reply, uint8 RGB (H, W, 3).

        Raises:
            PicturesError: It has no picture.
        """
        shown = f"{self.name}: the reply to {prompt[:60]!r}"
        found = getattr(reply, "data", None) or []
        if len(found) != 1:
            raise PicturesError(f"{shown} has {len(found)} pictures; expected the one asked for")
        text = getattr(found[0], "b64_json", None)
        if not text:
            link = " but the address of one" if getattr(found[0], "url", None) else ""
            raise PicturesError(f"{shown} has no picture{link}; let the server reply with b64_json")
        try:
            with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are too many")
                return np.array(image.convert("RGB"))
        except (binascii.Error, ValueError, OSError, SyntaxError) as error:
            raise PicturesError(f"{shown} is no picture that can be read ({error})") from error


def open_endpoint(
    text: str,
    *,
    size: str | None = None,
    more: Mapping[str, Any] | None = None,
    parallel: int = 4,
    timeout: float = 300.0,
    retries: int = 2,
) -> EndpointGenerator:
    """Return a model behind an images endpoint; nothing is sent yet.

    Args:
        text: URL#MODEL; the URL ends as the server says, mostly in /v1.
        size: "WIDTHxHEIGHT" in pixels.
        more: Other fields of the requests.
        parallel: Requests at once.
        timeout: Seconds that a request may take.
        retries: Times that a request is repeated, see `ine.observers.server_opening.open_server`.

    Raises:
        MissingDependency: The package openai is not installed.
        ObserverError: The address is wrong.
    """
    url, model = split_address(text)
    client, secret = open_client(url, timeout, retries)
    if not is_local(url):
        log.warning("prompts leave this machine: they are sent to %s, for %s", url, model)
    given = dict(more or {})
    said = "".join(f" {key}={value}" for key, value in sorted(given.items()))
    return EndpointGenerator(
        name=f"openai:{url}#{model}{f' {size}' if size else ''}{said}",
        client=client,
        model=model,
        size=size,
        more=given,
        batch=parallel,
        secret=secret,
    )


def load_generator(spec: str, *, size: str | None = None, parallel: int = 4) -> Any:
    """Return a generator that is no model of ours: `openai:URL#MODEL` or `command:WORDS`.

    Raises:
        IneError: It has another form, or cannot be used.
    """
    from ine.refining.commands import CommandGenerator

    kind, what = check_generator(spec)
    if kind == "openai":
        return open_endpoint(what, size=size, parallel=parallel)
    return CommandGenerator(command=what)


def check_generator(spec: str) -> tuple[str, str]:
    """Return (kind, what follows the colon) of a generator's name; nothing is run or asked.

    Raises:
        IneError: It has another form.
        ObserverError: The address of an endpoint is wrong.
    """
    from ine.refining.commands import CommandGenerator

    kind, _, what = spec.partition(":")
    if kind == "openai":
        split_address(what)
    elif kind == "command":
        CommandGenerator(command=what)
    else:
        raise IneError(
            f"generator {kind!r}: is unknown; expected openai:URL#MODEL, or command: and a command "
            "with {prompts} and {out}; without a generator, --model and --unet name one of ours"
        )
    return kind, what
