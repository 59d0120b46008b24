"""Open folders of models and adapters, as libraries and trainers write them, for `--unet`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ine.errors import CheckpointError
from ine.schedules import schedule_of_another_kind
from ine.weights.adapter_settings import CONFIG, is_raw
from ine.weights.files import read_file
from ine.weights.hub import ENDINGS
from ine.weights.lora import is_lora_folder, open_lora, open_lora_folder
from ine.weights.source import ENCODER_FOLDERS, Source, folder_state, once_each, read_json


def folder_is(*classes: str) -> Callable[[Source], bool]:
    """Return a test for folders whose configuration names one of these classes."""

    def test(source: Source) -> bool:
        config = read_json(source.directory) if source.folder else {}
        return bool(
            {config.get("_class_name"), *(config.get("architectures") or [])} & set(classes)
        )

    return test


def is_pipeline(source: Source) -> bool:
    """Return whether a source is the folder of a whole pipeline."""
    return bool(source.folder) and (source.directory / "model_index.json").is_file()


def open_pipeline(source: Source) -> Source:
    """Read the UNet and the text encoders of a pipeline, and what its scheduler says.

    Raises:
        CheckpointError: A part is missing or damaged, or the scheduler is of another kind.
    """
    scheduler = read_json(source.directory / "scheduler", "scheduler_config.json")
    if why := schedule_of_another_kind(scheduler):
        raise CheckpointError(
            f"{source.path}: its scheduler {why}, so its UNet is no part of a Stable Diffusion "
            "1.x, 2.x or XL that ine can sample; give a folder of one of these"
        )
    if not (source.directory / "unet").is_dir():
        raise CheckpointError(f"{source.directory / 'unet'}: is missing; get the folder again")
    whole = (source.directory / "vae").is_dir()
    made = replace(open_parts(source), whole=whole)
    return replace(made, prediction_type=scheduler.get("prediction_type"))


def is_parts(source: Source) -> bool:
    """Return whether a source is a trainer's folder with folders of a UNet or text encoders."""
    return bool(source.folder) and any(map(_is_filled, _parts_of(source.directory)))


def _parts_of(folder: Path) -> list[Path]:
    return [folder / name for name in ("unet", *ENCODER_FOLDERS)]


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix in ENDINGS for file in folder.iterdir())


def open_parts(source: Source) -> Source:
    """Read the UNet and the text encoders of a folder, each whole or as a LoRA."""
    made = replace(source, folder=None)
    for folder in (part for part in _parts_of(source.directory) if part.is_dir()):
        theirs = replace(source, folder=folder)
        if is_lora_folder(theirs) and not (folder / "config.json").is_file():
            theirs = open_lora(open_lora_folder(theirs))
            made = replace(made, rename=theirs.rename, notes=made.notes + theirs.notes)
            found = [theirs.entries, *theirs.encoders.values()]
            state = once_each(folder, [pair for part in found for pair in part.items()])
        else:
            state = folder_state(folder)
        if folder.name == "unet":
            made = replace(made, entries=state, config=read_json(folder))
        else:
            made = replace(made, encoders=made.encoders | {folder.name: state})
    # Differences of a LoRA are already recognised; names of a UNet may still be wrapped.
    return replace(made, done=made.rename is not None or not made.entries)


def listed(folder: Path) -> list[str]:
    """Return the first names in a folder."""
    return sorted(file.name for file in folder.iterdir())[:5]


def weight_files_of(source: Source) -> list[Path]:
    """Return the files of weights directly in a folder; [] if the source is a file."""
    if not source.folder:
        return []
    return [file for file in source.folder.iterdir() if file.suffix in ENDINGS and file.is_file()]


def open_only_file(source: Source) -> Source:
    """Read the only file of weights in a folder, with PEFT's settings if they are beside it."""
    [file] = weight_files_of(source)
    entries, metadata = read_file(file)
    config = read_json(source.directory, CONFIG) if is_raw(entries) else {}
    return replace(source, folder=None, entries=entries, metadata=metadata, config=config)


def open_unet_folder(source: Source) -> Source:
    """Read a folder that `UNet2DConditionModel.save_pretrained` wrote."""
    config = read_json(source.directory)
    return replace(source, folder=None, entries=folder_state(source.directory), config=config)
