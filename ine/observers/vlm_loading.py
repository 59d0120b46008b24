"""Find and load a vision-language model with a processor for pictures alone.

Many processors hold a part for videos that needs torchvision, which `ine` does without; they are
built without that part.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ine.errors import IneError, ObserverError
from ine.files import sha256_of, user_path
from ine.models.parts import MINI_FOLDER
from ine.observers.adapters import add_adapter, base_of, is_adapter
from ine.observers.vlm import LocalAsker, Padding
from ine.weights.hub import snapshot

BUNDLED = {"mini-eyes": MINI_FOLDER / "eyes"}
"""Models that ship with `ine`; docs/bundled-model.md describes them."""

WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""Files of a model on the hub that are used; nothing that would have to be unpickled."""

KINDS = "LLaVA, Idefics3, SmolVLM, Qwen2.5-VL or another that transformers loads by that name"


def find_vlm(place: str, fetch: bool = True) -> Path:
    """Return the folder of a model: a bundled one, a folder, or a hub id in the cache or fetched.

    Args:
        place: Its name.
        fetch: Whether a hub id may be fetched.

    Raises:
        LookupError: With `fetch` false, a hub id that is not in the cache.
        ObserverError: There is no such model.
    """
    if place in BUNDLED:
        return BUNDLED[place]
    folder = user_path(place)
    if os.path.isfile(folder / "config.json") or is_adapter(folder):
        return folder
    if os.path.exists(folder):
        raise ObserverError(
            f"observer vlm:{place}: the folder has no config.json; give the folder of a "
            "vision-language model as transformers saves it"
        )
    if place.startswith((".", "/", "~")) or place.count("/") != 1:
        raise ObserverError(
            f"observer vlm:{place}: no such folder; give a model's folder, a hub id (OWNER/NAME) "
            f"or a bundled model ({', '.join(BUNDLED)})"
        )
    try:
        return snapshot(place, WANTED, fetch=fetch)
    except Exception as error:  # the hub's client raises many kinds
        if not fetch:
            raise LookupError(f"{place}: is not on this machine") from error
        raise ObserverError(
            f"observer vlm:{place}: is not on this machine and could not be fetched "
            f"({type(error).__name__}); get it once with network access: `hf download {place}`, "
            "or give its folder"
        ) from error


def name_of(place: str, padding: Padding = "left") -> str:
    """Return the name of a model on this machine, which its files decide; no weights are loaded.

    Raises:
        ObserverError: There is no such model.
    """
    return f"vlm:{digest_of(find_vlm(place))}{'' if padding == 'left' else '-padded-right'}"


def load_vlm(
    place: str, device: str = "auto", batch: int = 8, padding: Padding = "left"
) -> LocalAsker:
    """Return a model on this machine that answers questions about pictures.

    Args:
        place: The name of a bundled model, a folder, or a hub id; a folder may hold an adapter in
            PEFT's layout, which names its model.
        device: See `ine.runtime.pick_device`.
        batch: Conversations at a time.
        padding: Side on which the shorter ones are padded, see `ine.observers.vlm.LocalAsker`.

    Raises:
        CheckpointError: An adapter does not fit the model that it names.
        ObserverError: There is no such model, it cannot be loaded, or it has no vision part.
    """
    from transformers import AutoModelForImageTextToText

    from ine.runtime import pick_device, pick_dtype

    given = find_vlm(place)
    folder = find_vlm(base_of(given)) if is_adapter(given) else given
    check_vision(folder, place)
    where = pick_device(device)
    try:
        processor = load_processor(folder)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=pick_dtype("auto", where), use_safetensors=True, local_files_only=True
        )
    except IneError:
        raise
    except Exception as error:  # transformers raises many kinds for a broken folder
        raise ObserverError(
            f"observer vlm:{place}: cannot be loaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:300] if str(error).strip() else 'no message'}); "
            "give the folder of a whole model with its processor and safetensors weights"
        ) from error
    if given != folder:
        model = add_adapter(model, given, digest=digest_of(folder))
    return LocalAsker(name_of(place, padding), model.to(where), processor, batch, padding)


def check_vision(folder: Path, place: str) -> None:
    """Raise unless a model takes pictures; nothing is loaded.

    Raises:
        ObserverError: It takes text alone, or its configuration cannot be read.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = _read_json(folder / "config.json", place)
    kind = config.get("model_type")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ObserverError(
            f"observer vlm:{place}: its config.json says model_type {kind!r}, a model without a "
            f"vision part or of an unknown kind; expected an image-text-to-text model ({KINDS})"
        )


def digest_of(folder: Path) -> str:
    """Return 16 hex digits that tell a model's folder from others of another content.

    Small files count by content. Of larger ones, the weights, size and both ends count, where
    safetensors keeps names and shapes, and the last tensor.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".json", ".jinja", ".txt", ".model", ".safetensors"}:
            found.append(f"{path.name} {_ends(path)}")
    return sha256_of("\n".join(found).encode())[:16]


def _ends(path: Path, most: int = 1 << 26) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= most:
            return sha256_of(file.read())
        first = file.read(most // 2)
        file.seek(-most // 2, os.SEEK_END)
        return sha256_of(str(size).encode(), first, file.read())


def _read_json(path: Path, place: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ObserverError(
            f"observer vlm:{place}: {path.name} cannot be read ({error})"
        ) from error
    if not isinstance(value, dict):
        raise ObserverError(f"observer vlm:{place}: {path.name} is no JSON object")
    return value


def load_processor(folder: Path) -> Any:
    """Return a model's processor, for text and pictures alone.

    Raises:
        ObserverError: It cannot be built, or the model has no chat template.
    """
    from transformers import AutoProcessor

    name = _processor_name(folder)
    if make := IMAGE_ONLY.get(name):
        processor = make(folder, name)
    else:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if getattr(processor, "image_processor", None) is None:
        raise ObserverError(f"{folder}: its processor takes no pictures; give a model with vision")
    if not getattr(processor, "chat_template", None):
        raise ObserverError(
            f"{folder}: has no chat template, so questions cannot be put to it; give an "
            "instruction-tuned model (chat_template.jinja)"
        )
    return processor


def _processor_name(folder: Path) -> str:
    """Return the class of a model's processor, "" if no file names it."""
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            found = _read_json(folder / file, str(folder)).get("processor_class")
            if isinstance(found, str):
                return found
    return ""


def _halves(folder: Path) -> tuple[Any, Any, str | None]:
    """Return (image processor, tokenizer, chat template) of a folder."""
    from transformers import AutoImageProcessor, AutoTokenizer

    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    template = tokenizer.chat_template
    for file in ("chat_template.jinja", "chat_template.json"):
        if not template and (folder / file).is_file():
            text = (folder / file).read_text(encoding="utf-8")
            template = text if file.endswith("jinja") else json.loads(text)["chat_template"]
    return pixels, tokenizer, template


def _without_video(folder: Path, name: str) -> Any:
    """Return a processor of a class that wants a video processor, without one."""
    import transformers

    base = getattr(transformers, name)

    class ImageOnly(base):  # type: ignore[misc,valid-type]
        """Takes text and pictures."""

        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            chat_template: str | None = None,
        ) -> None:
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

        def check_argument_for_proper_class(self, name: str, arg: Any) -> Any:
            if name == "video_processor":
                return None
            return super().check_argument_for_proper_class(name, arg)

    pixels, tokenizer, template = _halves(folder)
    return ImageOnly(pixels, tokenizer, chat_template=template)


def _as_idefics3(folder: Path, name: str) -> Any:
    """Return the processor of SmolVLM's family that has no part for videos."""
    from transformers import Idefics3Processor

    pixels, tokenizer, template = _halves(folder)
    config = _read_json(folder / "processor_config.json", str(folder))
    length = config.get("image_seq_len", 169)
    return Idefics3Processor(
        image_processor=pixels, tokenizer=tokenizer, image_seq_len=length, chat_template=template
    )


IMAGE_ONLY: dict[str, Callable[[Path, str], Any]] = {
    "Qwen2VLProcessor": _without_video,
    "Qwen2_5_VLProcessor": _without_video,
    "Qwen3VLProcessor": _without_video,
    "SmolVLMProcessor": _as_idefics3,
}
"""Class of a processor with a part for videos -> function that builds it without."""
