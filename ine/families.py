"""Families of models, by the width of the text states that a U-Net reads, and their defaults.

A new family is one row; nothing else in the package asks which family a model belongs to.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of Stable Diffusion, and its default settings."""

    name: str
    width: int
    """Width of the states that cross-attention reads, text encoders side by side."""

    title: str
    architectures: tuple[tuple[str, str], ...] = ()
    """(ModelSpec architecture, picture size) of its usual models; a second pair is for models that
    predict epsilon."""

    uis: bool = True
    """Whether user interfaces run it, with CLIP's own vocabulary."""

    steps: int = 50
    guidance_scale: float = 7.5
    batch: int = 4
    """Pictures per batch."""

    compared: int = 4
    """Pictures per batch in `ine compare`."""

    probes: int = 8
    """Pictures of each kind in `ine embedding verify`."""

    def modelspec(self, prediction: str | None = "v") -> tuple[str, str] | tuple[None, None]:
        """Return (ModelSpec architecture, picture size), or (None, None).

        Args:
            prediction: "epsilon" or "eps"; anything else stands for the usual prediction.
        """
        if not self.architectures:
            return None, None
        return self.architectures[-1 if prediction in ("epsilon", "eps") else 0]


FAMILIES = (
    Family(
        name="mini",
        width=128,
        title="`mini`, the bundled model of ine",
        architectures=(("ine-mini", "64x64"),),
        uis=False,
        steps=20,
        guidance_scale=5.0,
        batch=16,
        compared=48,
        probes=16,
    ),
    Family(
        name="sd1",
        width=768,
        title="Stable Diffusion 1.x",
        architectures=(("stable-diffusion-v1", "512x512"),),
    ),
    Family(
        name="sd2",
        width=1024,
        title="Stable Diffusion 2.x",
        architectures=(
            ("stable-diffusion-v2-768-v", "768x768"),
            ("stable-diffusion-v2-512", "512x512"),
        ),
    ),
    Family(
        name="sdxl",
        width=2048,
        title="Stable Diffusion XL",
        architectures=(("stable-diffusion-xl-v1-base", "1024x1024"),),
        batch=2,
        compared=2,
    ),
)


def family_of(width: int) -> Family:
    """Return the family of a width; an unknown width gets a family "width-N" with the defaults."""
    known = {family.width: family for family in FAMILIES}
    title = f"a model of text width {width}"
    return known.get(width) or Family(name=f"width-{width}", width=width, title=title, uis=False)
