"""Open torch files that hold an embedding, checked before anything in them is loaded."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

from ine.embeddings.content import Content, cut_short
from ine.embeddings.dictionaries import content_of
from ine.errors import EmbeddingError
from ine.weights.torch_files import known_to_torch, load_torch_file

UNPACKED_LIMIT = 64 * 2**20
"""Bytes that a zip may unpack to in addition to twice its size; torch does not compress."""

TOOLS = ("pytorch_lightning.", "lightning.", "omegaconf.")
"""Modules of training programs whose objects checkpoints contain beside their tensors."""


def open_torch(path: Path) -> Content:
    """Return the `Content` of a torch file of either kind.

    Raises:
        EmbeddingError: It is damaged, unpacks to too much, or asks for more than plain tensors.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            _check_unpacked(path)
    try:
        with known_to_torch(ParameterDict):
            tree = load_torch_file(path)
    except pickle.UnpicklingError as error:
        raise _has_code(path, str(error)) from error
    except Exception as error:
        # A damaged pickle fails in any way at all: EOFError, RuntimeError, KeyError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise cut_short(path, reason) from error
    return content_of(path, _plain(tree))


def _check_unpacked(path: Path) -> None:
    """Raise `EmbeddingError` for a zip of far more than its own size."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise cut_short(path, str(error)) from error
    if unpacked > 2 * path.stat().st_size + UNPACKED_LIMIT:
        raise EmbeddingError(
            f"{path}: is a zip that would unpack to {unpacked / 2**20:.0f} MiB, which no "
            "embedding does; do not trust this file, get a .safetensors copy"
        )


def _plain(tree: object) -> object:
    """Return the tree with the parameters of an early embedding as a dictionary."""
    if isinstance(tree, dict) and isinstance(tree.get("string_to_param"), ParameterDict):
        return {**tree, "string_to_param": tree["string_to_param"].parameters()}
    return tree


class ParameterDict:
    """Stand-in for torch's class of that name in files of early textual inversion.

    It keeps the state in the file and runs nothing: the state is read afterwards and never
    applied to a module.
    """

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name; {} for a state of another form."""
        state = self.state if isinstance(self.state, dict) else {}
        found = state.get("_parameters")
        return found if isinstance(found, dict) else {}


# torch finds a registered class by the name that it has in the file.
ParameterDict.__module__ = "torch.nn.modules.container"


def _has_code(path: Path, reason: str) -> EmbeddingError:
    what = re.search(r"GLOBAL ([\w.]+)", reason)
    if what and what[1].startswith(TOOLS):
        return EmbeddingError(
            f"{path}: holds an object of a training program ({what[1]}) beside its tensors, which "
            "needs that program's code to be made, and that was not done; save the vectors alone, "
            "or get a .safetensors copy"
        )
    if what:
        return EmbeddingError(
            f"{path}: asks to run {what[1]} when it is loaded, which was not done; an embedding "
            "needs no code, so do not trust this file; get a .safetensors copy"
        )
    return EmbeddingError(
        f"{path}: is a pickle that cannot be read without running what is in it, which was not "
        "done; get a .safetensors copy"
    )
