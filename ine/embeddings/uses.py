"""How each program loads an embedding and what to type; docs/using-in-uis.md has the details."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ine.embeddings.embedding import ConceptEmbedding

USES = (
    ("A1111, Forge, reForge", "embeddings/", "{name}"),
    ("Forge Classic", "models/embeddings/", "{name}"),
    ("Forge Neo", "models/embeddings/", "{name}"),
    ("ComfyUI", "models/embeddings/", "embedding:{name}"),
    ("Krita AI", "models/embeddings/ of its server", "embedding:{name}"),
    ("Fooocus", "models/embeddings/", "(embedding:{name}:1.0)"),
    ("SwarmUI", "Models/Embeddings/", "<embed:{name}>"),
    ("Stability Matrix", "Models/Embeddings/", "<embedding:{name}>"),
    ("InvokeAI", "import in the model manager", "<{name}>"),
    ("SD.Next", "models/embeddings/", "{name}"),
    ("Easy Diffusion", "models/embeddings/", "{name}"),
    ("Draw Things", "import as a textual inversion", "<{name}>"),
    ("stable-diffusion.cpp", "a folder, given with --embd-dir", "{name}"),
    ("diffusers", "pipe.load_textual_inversion(FILE, token=...)", "{name}"),
    ("OpenVINO", "pipe.load_textual_inversion(FILE, TOKEN)", "{name}"),
)
"""(program, folder or way to load the file, text for the negative prompt)."""

ONLY = {"diffusers": {"diffusers", "OpenVINO"}}
"""Layout -> its programs; other layouts are for all of USES."""

NOT_PT = {"SwarmUI"}
"""Programs that read only the header; torch files have none."""

NOT_SDXL = {"stable-diffusion.cpp", "diffusers", "OpenVINO"}
"""Programs that cannot use a single file for SDXL."""

WITHOUT = {"sd1": {"Fooocus"}, "sd2": {"Fooocus", "Forge Neo"}}
"""Family -> the programs that do not run its models."""

ENCODERS = (
    "text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer",
    "text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2",
)
"""The arguments that choose the encoder of a diffusers pipeline for a file's vectors."""


def diffusers_calls(files: Sequence[Path]) -> list[str]:
    """Return the calls that load a folder of `--to diffusers`, one per file.

    The key in the files is the token. Without an encoder diffusers chooses the first one, whose
    width differs from the second file's.
    """
    if len(files) == 1:
        return [f"pipe.load_textual_inversion({str(files[0].parent)!r})"]
    return [
        f"pipe.load_textual_inversion({str(file.parent)!r}, weight_name={file.name!r}, {encoder})"
        for file, encoder in zip(files, ENCODERS, strict=True)
    ]


def uses_of(embedding: ConceptEmbedding, layout: str = "universal") -> list[tuple[str, str, str]]:
    """Return the rows of USES for an embedding, filled in; [] for models that no UI runs."""
    if not embedding.family_info.uis:
        return []
    wanted = ONLY.get(layout, {program for program, _, _ in USES})
    wanted = wanted - WITHOUT.get(embedding.family, set())
    if layout == "a1111-pt":
        wanted = wanted - NOT_PT
    if len(embedding.vectors) > 1:
        wanted = wanted - (NOT_SDXL if layout != "diffusers" else {"OpenVINO"})
    return [
        (program, place, typed.format(name=embedding.trigger))
        for program, place, typed in USES
        if program in wanted
    ]
