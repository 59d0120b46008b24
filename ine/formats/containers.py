"""The containers that embeddings come in, opened without running anything in them.

A file is judged by its bytes, not by its extension: embeddings are often renamed, and a download
that failed leaves a web page under the right name.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError, safe_open

from ine.errors import EmbeddingError
from ine.files import JSON_LIMIT, is_lfs_pointer, is_web_page
from ine.formats.pictures import is_picture, read_picture_data
from ine.models.torch_files import FLOATS, load_torch_file

KEPT = ("step", "sd_checkpoint", "sd_checkpoint_name")
"""What an A1111 dictionary says beside vectors and name."""

UNPACKED_LIMIT = 64 * 2**20
"""Bytes that a zip may unpack to beyond twice its own size; torch does not compress at all."""


@dataclass(frozen=True)
class Content:
    """What a container holds, before anything is said about its meaning."""

    shapes: dict[str, tuple[int, ...] | None]
    """Key -> shape; None for tensors of whole or quantised numbers, which cannot be vectors."""

    get: Callable[[str], torch.Tensor]
    """Key -> tensor."""

    name: str | None = None
    """The embedding's name, where the container has a place for one."""

    metadata: dict[str, str] = field(default_factory=dict)


def open_container(path):
    """Return the `Content` of a safetensors file, a torch file, or an A1111 picture.

    Raises:
        EmbeddingError: It is missing, damaged, something else, or asks to run code.
    """
    return OPENERS[_kind(path)](path)


def _kind(path):
    """Return a key of OPENERS, by the first bytes."""
    if not os.path.exists(path):
        raise EmbeddingError(f"{path}: no such file; give an embedding (.safetensors, .pt, .bin)")
    if os.path.isdir(path):
        raise EmbeddingError(f"{path}: is a folder; give the embedding file in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise EmbeddingError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise EmbeddingError(f"{path}: is empty; download or copy it again")
    if is_lfs_pointer(head):
        raise EmbeddingError(
            f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
        )
    if is_web_page(head):
        raise EmbeddingError(
            f"{path}: is a web page, not an embedding; the download went wrong, get the file "
            "itself (on a hub, the link 'download', not the page)"
        )
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= JSON_LIMIT:
        if size < 8 + length:
            raise cut_short(path, f"its header says {length} bytes, {size - 8} are there")
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[0] == 0x80 and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    if is_picture(path, head):
        return "picture"
    raise EmbeddingError(
        f"{path}: is neither safetensors nor a torch file (it begins with {head[:8]!r}); give an "
        "embedding (.safetensors, .pt, .bin, or a picture of A1111 with one inside)"
    )


def cut_short(path, reason):
    """Return the error for a file that breaks off or does not add up."""
    return EmbeddingError(f"{path}: is damaged or cut short ({reason}); download or copy it again")


def _open_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {
                key: tuple(s.get_shape()) if s.get_dtype() in FLOATS else None
                for key, s in slices.items()
            }
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise cut_short(path, str(error).strip().splitlines()[0]) from error

    def get(key):
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)

    return Content(shapes, get, metadata=metadata)


def _open_zip(path):
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
    return _open_pickle(path)


def _open_pickle(path):
    try:
        with _known(ParameterDict):
            tree = load_torch_file(path)
    except pickle.UnpicklingError as error:
        raise _has_code(path, str(error)) from error
    except Exception as error:
        # A damaged pickle fails in any way at all: EOFError, RuntimeError, KeyError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise cut_short(path, reason) from error
    return _content_of(path, tree)


def _open_picture(path):
    return _content_of(path, read_picture_data(path))


OPENERS = {
    "safetensors": _open_safetensors,
    "zip": _open_zip,
    "pickle": _open_pickle,
    "picture": _open_picture,
}


def _content_of(path, tree):
    """Return the `Content` of what `torch.save` was given: a tensor or nested dictionaries."""
    if isinstance(tree, torch.Tensor):
        tree = {"*": tree}
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise EmbeddingError(f"{path}: holds a {kind}, not an embedding; expected named tensors")
    name, metadata, tensors = None, {}, tree
    vectors = tree.get("string_to_param")
    if isinstance(vectors, ParameterDict):
        vectors = vectors.parameters()
    if isinstance(vectors, dict):
        tensors = vectors
        name = tree.get("name")
        name = name if isinstance(name, str) and name else None
        metadata = {k: str(tree[k]) for k in KEPT if _is_plain(tree.get(k))}
    elif isinstance(tree.get("state_dict"), dict):
        tensors = tree["state_dict"]
    tensors = {str(k): t for k, t in tensors.items() if isinstance(t, torch.Tensor)}
    floats = FLOATS.values()
    shapes = {k: tuple(t.shape) if t.dtype in floats else None for k, t in tensors.items()}
    return Content(shapes, tensors.__getitem__, name, metadata)


def _is_plain(value):
    """Return whether a value is a text or a number of usual size."""
    return isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63)


class ParameterDict:
    """Stands for torch's class of that name in files of early textual inversion.

    It keeps what the file says about the object and runs nothing: the file's state is looked at
    afterwards, never applied to a module.
    """

    state = None

    def __setstate__(self, state):
        self.state = state

    def parameters(self):
        """Return the parameters by name; {} for a state that is not one of such an object."""
        state = self.state if isinstance(self.state, dict) else {}
        found = state.get("_parameters")
        return found if isinstance(found, dict) else {}


# torch finds a class that it is told of by the name it would have in the file.
ParameterDict.__module__ = "torch.nn.modules.container"


@contextmanager
def _known(*classes):
    """Tell torch's restricted unpickler of classes, and take them back."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(list(classes))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _has_code(path, reason):
    what = re.search(r"GLOBAL ([\w.]+)", reason)
    if what:
        return EmbeddingError(
            f"{path}: asks to run {what[1]} when it is loaded, which was not done; an embedding "
            "needs no code, so do not trust this file; get a .safetensors copy"
        )
    return EmbeddingError(
        f"{path}: is a pickle that cannot be read without running what is in it, which was not "
        "done; get a .safetensors copy"
    )
