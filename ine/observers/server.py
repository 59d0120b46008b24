"""A model behind an OpenAI-compatible server, asked about several pictures at once."""

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

from ine.observers.asking import Reply
from ine.observers.question import Conversation, Turn
from ine.pictures import png_data_uri

if TYPE_CHECKING:
    from openai import OpenAI

log = logging.getLogger("ine")

REFUSES_FORMAT = frozenset({400, 404, 415, 422, 500, 501})
"""Status codes with which servers decline a field that they do not know."""


class ServerAsker:
    """Sends conversations to a server; a request that fails gives a failed reply."""

    def __init__(
        self, name: str, client: "OpenAI", model: str, parallel: int = 4, secret: str = ""
    ) -> None:
        """Take a client; see `ine.observers.server_opening.open_server`.

        Args:
            name: What tells this model from others.
            client: With its time-outs and retries.
            model: As the server calls it.
            parallel: Requests at once.
            secret: The key, which is cut out of the server's error messages.
        """
        self.name = name
        self.client = client
        self.model = model
        self.parallel = parallel
        self.structured: bool | None = None
        """Whether the server keeps to a JSON schema; None until the first request says so."""

        self._secret = secret
        self._deciding = Lock()

    def ask(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Return one reply per conversation; the first request finds out what the server can do."""
        alone = 1 if self.structured is None else 0
        first = [self._ask(one) for one in conversations[:alone]]
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            return [*first, *pool.map(self._ask, conversations[alone:])]

    def _ask(self, conversation: Conversation) -> Reply:
        import openai

        try:
            return self._send(conversation)
        except openai.APITimeoutError as error:
            return Reply(failed="time-out", why=self._cut(error))
        # The latter four come from replies that are JSON of another kind, or none.
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return Reply(failed="error", why=self._cut(error))

    def _send(self, conversation: Conversation) -> Reply:
        """Send one request; without a schema if the server declines that."""
        import openai

        if conversation.schema is None or self.structured is False:
            return self._request(conversation, None)
        try:
            reply = self._request(conversation, _format(conversation.schema))
        except openai.APIStatusError as error:
            if self.structured or error.status_code not in REFUSES_FORMAT:
                raise
            reply = self._request(conversation, None)
            self._decide(False, f"declines response_format ({error.status_code}), asked for text")
            return reply
        if not reply.failed:
            self._decide(True, "takes response_format, asked for JSON")
        return reply

    def _decide(self, structured: bool, said: str) -> None:
        """Keep, and log once, whether the server keeps to a JSON schema."""
        with self._deciding:
            if self.structured is None:
                self.structured = structured
                log.info("%s: %s", self.name, said)

    def _request(self, conversation: Conversation, form: Mapping[str, Any] | None) -> Reply:
        more: dict[str, Any] = {} if form is None else {"response_format": form}
        done = self.client.chat.completions.create(
            model=self.model,
            messages=[_message(turn) for turn in conversation.turns],
            max_tokens=conversation.max_tokens,
            temperature=0,
            **more,
        )
        choices = getattr(done, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            return Reply(failed="error", why="the server's reply holds no message")
        message = choices[0].message
        text = message.content or ""
        if not isinstance(text, str):
            return Reply(failed="error", why="the server's reply is no text")
        if refusal := getattr(message, "refusal", None):
            return Reply(text=str(refusal), failed="refusal")
        if choices[0].finish_reason == "content_filter":
            return Reply(text=text, failed="refusal", why="content_filter")
        return Reply(text=text)

    def _cut(self, error: Exception) -> str:
        """Return an error as one short line without the key."""
        return safe_text(f"{type(error).__name__}: {error}", self._secret)


def safe_text(text: str, secret: str, most: int = 300) -> str:
    """Return a text as one short line in which a key is replaced by ***.

    Servers repeat a wrong key in their messages, sometimes with its middle left out, so anything
    that looks like one is replaced as well.
    """
    if secret:
        text = text.replace(secret, "***")
    text = re.sub(r"\b(?:sk-|key-|Bearer )[\w*.-]{6,}", "***", text)
    return " ".join(text.split())[:most]


def _format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "observation", "strict": True, "schema": dict(schema)},
    }


def _message(turn: Turn) -> dict[str, Any]:
    """Return a turn as the chat endpoint takes it, the picture inside as PNG."""
    if turn.picture is None:
        return {"role": turn.role, "content": turn.text}
    picture = {"type": "image_url", "image_url": {"url": png_data_uri(turn.picture)}}
    return {"role": turn.role, "content": [picture, {"type": "text", "text": turn.text}]}
