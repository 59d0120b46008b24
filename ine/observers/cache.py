"""Replies kept on disk, so that no model is asked the same about the same picture twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ine.errors import ObserverError
from ine.observers.asking import Asker, Reply
from ine.observers.question import Conversation
from ine.store.tensors import Notes, Tensors, UnitFiles
from ine.store.units import key_of


def _pack(reply: Reply) -> tuple[Tensors, Notes]:
    return {}, {"text": reply.text}


def _unpack(tensors: Tensors, notes: Notes) -> Reply:
    if not isinstance(notes["text"], str):
        raise ValueError("the reply is no text")
    return Reply(text=notes["text"])


FILES = UnitFiles(
    what="a model's reply",
    entry="ine.reply",
    pack=_pack,
    unpack=_unpack,
    format="ine.reply/1",
    error=ObserverError,
)


@dataclass(frozen=True)
class CachedAsker:
    """A model whose replies are kept by (model, question, pictures); its failures are not."""

    asker: Asker
    folder: Path
    """Holds `replies/ab/KEY.safetensors`; several runs may share it."""

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.asker.name

    def path_of(self, key: str) -> Path:
        """Return the file of a reply."""
        return Path(self.folder) / "replies" / key[:2] / f"{key}.safetensors"

    def ask(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Return one reply per conversation, from its file or from the model.

        Raises:
            ObserverError: A file is damaged.
            OutputError: A file cannot be written.
        """
        keys = [key_of(model=self.name, conversation=one.key) for one in conversations]
        wanted = dict(zip(keys, conversations, strict=True))
        stored = {key: FILES.read(self.path_of(key), key) for key in wanted}
        found = {key: reply for key, reply in stored.items() if reply}
        missing = [key for key in wanted if key not in found]
        made = self.asker.ask([wanted[key] for key in missing]) if missing else []
        for key, reply in zip(missing, made, strict=True):
            found[key] = reply
            if not reply.failed:
                FILES.write(reply, self.path_of(key), key)
        return [found[key] for key in keys]
