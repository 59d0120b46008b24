"""Concept embeddings: token vectors with where they come from, and the files that hold them.

Written is one layout only, the one that every UI examined loads (docs/embedding-format.md): a
`.safetensors` with a single float32 tensor `emb_params` (or exactly `clip_l` and `clip_g`), all
else as strings in its header. Read are the layouts of A1111, diffusers and their relatives.

Shape letters: N vectors, D width of a text encoder's token table.
"""

import json
import logging
import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ine import __version__
from ine.errors import EmbeddingError
from ine.files import check_free, check_suffix, sha256_of, write_bytes
from ine.models.fingerprint import fingerprint, same_weights
from ine.models.parts import FAMILIES

log = logging.getLogger("ine")

MAX_VECTORS = 75
"""Tokens of a CLIP context without its start and end; more never fit into a prompt."""

TRIGGER = re.compile(r"[a-z][a-z0-9_-]*[a-z]")
PAIR = ("clip_l", "clip_g")
NAMELESS = {"emb_params", "emp_params", "clip_l", "*", "string_to_param.*"}
"""Tensor keys that are no names; `emp_params` is OneTrainer's spelling."""

MODELSPEC = {
    "mini": ("ine-mini", "64x64"),
    "sd1": ("stable-diffusion-v1", "512x512"),
    "sd2": ("stable-diffusion-v2-768-v", "768x768"),
    "sdxl": ("stable-diffusion-xl-v1-base", "1024x1024"),
}
"""Family -> ModelSpec architecture and picture size."""

OTHER_KINDS = {
    "a LoRA": r"(^|\.)lora_(up|down|A|B)\b|^lora_(unet|te\d?)_|lora\.(up|down)\.|hada_w|lokr_w",
    "the weights of a U-Net or of a whole model": (
        r"^model\.diffusion_model\.|^(unet\.)?(down_blocks|up_blocks|mid_block)\."
        r"|^(input|middle|output)_blocks?\.|attn2\.to_"
    ),
    "the weights of a VAE": (
        r"^(first_stage_model|(encoder|decoder)\.(conv_in|mid_block|mid))\.|quant_conv\."
    ),
    "the weights of a text encoder": r"text_model\.|text_projection",
}
"""What a file is instead of an embedding -> a pattern of its tensor names, most telling first."""


@dataclass(frozen=True, eq=False)
class ConceptEmbedding:
    """Token vectors that stand for a concept, with all that is needed to use and repeat them."""

    vectors: tuple[torch.Tensor, ...]
    """One (N, D) float32 tensor per text encoder; SDXL has two, clip_l then clip_g."""

    trigger: str
    """The word that stands for the vectors in a prompt."""

    concept: str
    """What was inverted: a recipe's name. The trigger where a foreign file does not say."""

    metadata: dict[str, str] = field(default_factory=dict)
    """Everything else, under the keys of the file header ("ine.base", "modelspec.date", ...)."""

    @property
    def count(self):
        """Number of vectors, N."""
        return len(self.vectors[0])

    @property
    def width(self):
        """Width of the text states they belong to: 768 SD 1.x, 1024 SD 2.x, 2048 SDXL."""
        return sum(v.shape[1] for v in self.vectors)

    @property
    def digest(self):
        """Return 16 hex digits of the numbers."""
        return sha256_of(*(v.numpy().tobytes() for v in self.vectors))[:16]

    @property
    def family(self):
        """Return "mini", "sd1", "sd2", "sdxl", or "width-N", as `DiffusionParts.family`."""
        return FAMILIES.get(self.width, f"width-{self.width}")


def new_embedding(vectors, trigger, concept, metadata=None):
    """Return a `ConceptEmbedding` of copies on the CPU in float32.

    Args:
        vectors: (N, D) or (D,), or one such tensor per text encoder.
        trigger: The word that stands for the vectors.
        concept: What was inverted.
        metadata: Header keys and values; values become strings, None is left out.
    """
    given = vectors if isinstance(vectors, tuple | list) else (vectors,)
    metadata = {k: str(v) for k, v in (metadata or {}).items() if v is not None}
    return ConceptEmbedding(tuple(_plain(v) for v in given), trigger, concept, metadata)


def _plain(tensor):
    copy = tensor.detach().to("cpu", torch.float32, copy=True)
    return (copy if copy.dim() > 1 else copy.reshape(1, -1)).contiguous()


def check_trigger(name, tokenizer=None):
    """Raise `EmbeddingError` for a trigger that some UI would misread.

    Args:
        name: Lower-case letters, digits, `_` and `-`; begins and ends with a letter.
        tokenizer: Where given, the name may not be one of its tokens: a UI would then replace
            that word in every prompt, or refuse the file.
    """
    if not TRIGGER.fullmatch(name):
        slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower())
        slug = re.sub(r"^[^a-z]+|[^a-z]+$", "", slug)
        example = slug if TRIGGER.fullmatch(slug) else "my-negative"
        raise EmbeddingError(
            f"trigger {name!r}: must be lower-case letters, digits, '_' and '-', and begin and "
            f"end with a letter, or some UIs will not find it; for example {example!r}"
        )
    if tokenizer is not None and {name, f"{name}</w>"} & tokenizer.get_vocab().keys():
        raise EmbeddingError(
            f"trigger {name!r}: is a token of the model's vocabulary, so it would replace that "
            f"word in every prompt; for example 'ine-{name}'"
        )


def write_embedding(embedding, path, force=False):
    """Write the universal layout; the same embedding gives the same bytes.

    Args:
        embedding: A `ConceptEmbedding`; its trigger should be the file's stem, since that is
            the name that UIs use.
        path: A `.safetensors` file.
        force: Replace an existing file.

    Raises:
        EmbeddingError: Vectors or trigger cannot be used.
        OutputError: The file exists, has another extension, or cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    check_trigger(embedding.trigger)
    check_free(path, force)
    if path.stem != embedding.trigger:
        log.warning(
            "%s: UIs take the file's name for the trigger, which is %r; rename it %s.safetensors",
            path,
            embedding.trigger,
            embedding.trigger,
        )
    vectors = tuple(_plain(v) for v in embedding.vectors)
    _check_vectors(embedding.trigger, vectors)
    names = ("emb_params",) if len(vectors) == 1 else PAIR
    write_bytes(path, _serialise(dict(zip(names, vectors, strict=True)), _header(embedding)))


def _header(embedding):
    """Return the metadata to write: the embedding's own, and over it what follows from it."""
    architecture, resolution = MODELSPEC.get(embedding.family, (None, None))
    if embedding.family == "sd2" and embedding.metadata.get("modelspec.prediction_type") in (
        "epsilon",
        "eps",
    ):
        architecture, resolution = "stable-diffusion-v2-512", "512x512"
    header = {
        "ine.version": __version__,
        "modelspec.title": f"{embedding.concept} (negative embedding)",
        **embedding.metadata,
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.is_negative_embedding": "true",
        "modelspec.trigger_phrase": embedding.trigger,
        "modelspec.usage_hint": f"put {embedding.trigger} in the negative prompt",
        "ine.concept": embedding.concept,
        "ine.trigger": embedding.trigger,
        "ine.vectors": str(embedding.count),
    }
    if architecture:
        header["modelspec.architecture"] = f"{architecture}/textual-inversion"
        header["modelspec.implementation"] = "https://github.com/Stability-AI/generative-models"
        header["modelspec.resolution"] = resolution
    wrong = [k for k, v in header.items() if not isinstance(v, str)]
    if wrong:
        raise ValueError(f"metadata must be strings, these are not: {', '.join(wrong)}")
    return header


def _serialise(tensors, metadata):
    """Return the bytes of a safetensors file.

    Not `safetensors.torch.save`: it puts metadata in a random order (safetensors 0.8).
    """
    chunks, entries, end = [], {}, 0
    for name in sorted(tensors):
        chunks.append(tensors[name].numpy().astype("<f4").tobytes())
        start, end = end, end + len(chunks[-1])
        entries[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    metadata = {**metadata, "modelspec.hash_sha256": f"0x{sha256_of(*chunks)}"}
    header = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **entries},
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(chunks)


def read_embedding(path):
    """Return the embedding in a file, ours or another tool's.

    Known are `emb_params`, diffusers' `{token: tensor}` (`learned_embeds`), and the pair
    `clip_l` and `clip_g`, each as safetensors or torch file, A1111's `string_to_param`, and a
    bare tensor. What a file is, is told from its bytes. Torch files are read without running
    any code in them.

    Returns:
        ConceptEmbedding: Float32 on the CPU. The trigger is the header's, else the name in the
        file, else the file's stem; the metadata is the whole header.

    Raises:
        EmbeddingError: It cannot be read, or is not one embedding.
    """
    path = Path(path)
    if _is_safetensors(path):
        named, metadata = _read_safetensors(path)
        name = None
    else:
        named, metadata, name = _read_torch(path)
    keys = PAIR if set(named) == set(PAIR) else tuple(named)
    vectors = tuple(_plain(named[k]) for k in keys)
    _check_vectors(path, vectors)
    if keys[0] not in NAMELESS:
        name = name or keys[0]
    stated = metadata.get("ine.trigger") or metadata.get("modelspec.trigger_phrase")
    trigger = stated or name or path.stem
    return ConceptEmbedding(vectors, trigger, metadata.get("ine.concept") or trigger, metadata)


def _is_safetensors(path):
    """Return True for safetensors, False for a torch file; refuse everything else."""
    if not path.exists():
        raise EmbeddingError(f"{path}: no such file; give an embedding (.safetensors, .pt, .bin)")
    if path.is_dir():
        raise EmbeddingError(f"{path}: is a folder; give the embedding file in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise EmbeddingError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise EmbeddingError(f"{path}: is empty; download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise EmbeddingError(
            f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
        )
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise EmbeddingError(
            f"{path}: is a web page, not an embedding; the download went wrong, get the file "
            "itself (on a hub, the link 'download', not the page)"
        )
    length = int.from_bytes(head[:8], "little")
    # The format's own limit for a header is 100 MB.
    if head[8:9] == b"{" and length <= 100_000_000:
        if size < 8 + length:
            raise _cut_short(path, f"its header says {length} bytes, {size - 8} are there")
        return True
    if head.startswith(b"PK\x03\x04") or (head[0] == 0x80 and head[1:2] in b"\x02\x03\x04\x05"):
        return False
    raise EmbeddingError(
        f"{path}: is neither safetensors nor a torch file (it begins with {head[:8]!r}); give an "
        "embedding (.safetensors, .pt, .bin)"
    )


def _cut_short(path, reason):
    return EmbeddingError(f"{path}: is damaged or cut short ({reason}); download or copy it again")


def _read_safetensors(path):
    """Return the chosen tensors by key, and the metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {
                # Only floating types can be vectors: F64, F32, F16, BF16, F8_...
                key: tuple(s.get_shape()) if "F" in s.get_dtype() else None
                for key, s in slices.items()
            }
            chosen = _choose(path, shapes)
            return {key: file.get_tensor(key) for key in chosen}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise _cut_short(path, str(error).strip().splitlines()[0]) from error


def _read_torch(path):
    """Return the chosen tensors by key, the metadata, and the name in the file or None."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # About pickle protocols and old storages; what cannot be read raises.
            warnings.simplefilter("ignore")
            # The open file, since torch goes by the extension when it is given a path.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _has_code(path, str(error)) from error
    except Exception as error:
        # A damaged pickle fails in any way at all: EOFError, RuntimeError, KeyError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _cut_short(path, reason) from error
    if isinstance(content, torch.Tensor):
        content = {"*": content}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise EmbeddingError(f"{path}: holds a {kind}, not an embedding; expected named tensors")
    metadata, name = {}, None
    tensors = content
    if isinstance(content.get("string_to_param"), dict):
        tensors = content["string_to_param"]
        name = str(content.get("name") or "") or None
        known = ("step", "sd_checkpoint", "sd_checkpoint_name")
        metadata = {k: str(content[k]) for k in known if content.get(k) is not None}
    elif isinstance(content.get("state_dict"), dict):
        tensors = content["state_dict"]
    tensors = {str(k): t for k, t in tensors.items() if isinstance(t, torch.Tensor)}
    shapes = {k: tuple(t.shape) if t.is_floating_point() else None for k, t in tensors.items()}
    chosen = _choose(path, shapes)
    return {key: tensors[key] for key in chosen}, metadata, name


def _has_code(path, reason):
    what = re.search(r"GLOBAL ([\w.]+)", reason)
    if what and what[1].endswith("ParameterDict"):
        return EmbeddingError(
            f"{path}: holds an nn.ParameterDict, the layout of early textual inversion, and its "
            "class would have to be run to read it; get a .safetensors copy, or save the tensor "
            'anew where you trust it: torch.save({"NAME": tensor}, FILE)'
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


def _choose(path, shapes):
    """Return the keys of the embedding's tensors.

    Args:
        path: For messages.
        shapes: Key -> shape, None for tensors of whole numbers.
    """
    for kind, pattern in OTHER_KINDS.items():
        if any(re.search(pattern, key) for key in shapes):
            raise EmbeddingError(
                f"{path}: holds {kind}, not an embedding; weights that change a model go to "
                "--unet, here give the embedding's own file"
            )
    able = {k: s for k, s in shapes.items() if s is not None and len(s) in (1, 2)}
    if set(able) == set(PAIR):
        return PAIR
    listed = [f"{k} {list(s) if s is not None else 'of whole numbers'}" for k, s in shapes.items()]
    found = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    if not able:
        raise EmbeddingError(
            f"{path}: holds no embedding, found {found or 'no tensors'}; expected one tensor "
            "[vectors, width], or clip_l with clip_g"
        )
    if len(able) > 1:
        raise EmbeddingError(
            f"{path}: has {len(able)} tensors that could be the embedding, found {found}; "
            "expected one, or clip_l with clip_g; save the one you want in a file of its own"
        )
    if set(able) == {"clip_g"}:
        raise EmbeddingError(
            f"{path}: has clip_g alone, half of an SDXL embedding; expected clip_l with it"
        )
    return tuple(able)


def _check_vectors(where, vectors):
    """Raise `EmbeddingError` unless there are 1 to 75 finite vectors, as many per encoder."""
    if len(vectors) not in (1, 2):
        raise EmbeddingError(f"{where}: has vectors for {len(vectors)} text encoders; 1 or 2 work")
    for v in vectors:
        if v.dim() != 2 or v.shape[1] == 0 or not 1 <= len(v) <= MAX_VECTORS:
            raise EmbeddingError(
                f"{where}: has shape {list(v.shape)}, expected [vectors, width] with 1 to "
                f"{MAX_VECTORS} vectors; is it an embedding?"
            )
        bad = int((~torch.isfinite(v)).any(dim=1).sum())
        if bad:
            raise EmbeddingError(
                f"{where}: {bad} of {len(v)} vectors have values that are not finite (NaN or "
                "infinite); the run that made it diverged, use an earlier or a new one"
            )
    counts = [len(v) for v in vectors]
    if len(set(counts)) > 1:
        raise EmbeddingError(
            f"{where}: has {counts[0]} vectors in clip_l and {counts[1]} in clip_g, expected as "
            "many in both; no UI reads uneven pairs alike"
        )


def fingerprints(parts):
    """Return header entries that tell which weights an embedding was made with.

    Args:
        parts: A `DiffusionParts`, the U-Net being the one inverted against.

    Returns:
        dict: "ine.base_fingerprint" of the text encoders, ";" between two, and
        "ine.unet_fingerprint".
    """
    return {
        "ine.base_fingerprint": _encoders_print(parts),
        "ine.unet_fingerprint": fingerprint(parts.unet),
    }


def _encoders_print(parts):
    return ";".join(fingerprint(encoder) for encoder in parts.text_encoders)


def check_fits(embedding, parts):
    """Return notes on how the model differs from the one the embedding was made with.

    Vectors only make sense to the text encoder they were found with. Another U-Net is allowed,
    transfer is what embeddings are for, and worth a note.

    Args:
        embedding: A `ConceptEmbedding`.
        parts: The `DiffusionParts` it shall be used on.

    Returns:
        list[str]: Sentences for the log; empty where all is the same or the file does not say.

    Raises:
        EmbeddingError: Width or number of text encoders differ, or there are more vectors than
            the model's context has room for.
    """
    stated = embedding.metadata.get("ine.base")
    made_for = stated or f"a model of family {embedding.family}"
    name = repr(embedding.trigger)
    have = [v.shape[1] for v in embedding.vectors]
    want = [e.get_input_embeddings().weight.shape[1] for e in parts.text_encoders]
    if have != want:
        raise EmbeddingError(
            f"embedding {name} was made for {made_for} ({_encoders(have)}), {parts.name} has "
            f"{_encoders(want)}; use it with {f'--model {stated}' if stated else made_for}, or "
            f"invert again with --model {parts.name}"
        )
    room = min(t.model_max_length for t in parts.tokenizers) - 2
    if embedding.count > room:
        raise EmbeddingError(
            f"embedding {name} has {embedding.count} vectors, the context of {parts.name} has "
            f"room for {room}; invert again with fewer vectors"
        )
    notes = []
    if _differs(embedding, "ine.base_fingerprint", lambda: _encoders_print(parts)):
        notes.append(
            f"embedding {name} was made for {made_for}; the text encoder of {parts.name} has "
            "other weights, so the vectors may mean something else there"
        )
    if _differs(embedding, "ine.unet_fingerprint", lambda: fingerprint(parts.unet)):
        notes.append(
            f"embedding {name} was inverted against the U-Net {_unet(embedding)!r}, here it is "
            f"used on {parts.unet_name!r}; this works, but its effect has to be measured anew"
        )
    return notes


def tell_fits(embeddings, parts):
    """Log how the model differs from those that embeddings were made with; see `check_fits`."""
    for embedding in embeddings:
        for note in check_fits(embedding, parts):
            log.info("note: %s", note)


def _unet(embedding):
    return embedding.metadata.get("ine.unet", "not stated")


def _encoders(widths):
    kind = "text encoder" if len(widths) == 1 else f"{len(widths)} text encoders"
    return f"{kind} of width {' + '.join(str(w) for w in widths)}"


def _differs(embedding, key, now):
    """Return whether a stated fingerprint is not that of the weights here."""
    stated = embedding.metadata.get(key)
    if not stated:
        return False
    one, other = stated.split(";"), now().split(";")
    try:
        same = len(one) == len(other) and all(map(same_weights, one, other))
    except ValueError:  # not numbers: written by hand or by a later version
        return True
    return not same
