"""What a user types in each program; docs/using-in-uis.md has the rest."""

USES = (
    ("A1111, Forge, reForge", "embeddings/", "{name}"),
    ("ComfyUI", "models/embeddings/", "embedding:{name}"),
    ("InvokeAI", "import in the model manager", "<{name}>"),
    ("SD.Next", "models/embeddings/", "{name}"),
    ("Draw Things", "import as a textual inversion", "<{name}>"),
    ("stable-diffusion.cpp", "a folder, given with --embd-dir", "{name}"),
    ("SwarmUI", "Models/Embeddings/", "<embed:{name}>"),
    ("diffusers", "pipe.load_textual_inversion(FILE, token=...)", "{name}"),
)
"""(program, where the file goes, what goes into the negative prompt)."""

ONLY = {"diffusers": {"diffusers"}}
"""Layout -> the programs that it is for; all of USES where it is not named."""

NOT_PT = {"SwarmUI"}
"""Programs that read the header only, which a torch file has not."""

NOT_SDXL = {"stable-diffusion.cpp", "diffusers"}
"""Programs that no single file serves on SDXL."""


def uses_of(embedding, layout="universal"):
    """Return the rows of USES for an embedding, filled in; none for models no UI runs."""
    if not embedding.traits.uis:
        return []
    wanted = ONLY.get(layout, {program for program, _, _ in USES})
    if layout == "a1111-pt":
        wanted = wanted - NOT_PT
    if len(embedding.vectors) > 1 and layout != "diffusers":
        wanted = wanted - NOT_SDXL
    return [
        (program, place, typed.format(name=embedding.trigger))
        for program, place, typed in USES
        if program in wanted
    ]
