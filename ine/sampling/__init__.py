"""Sampling: from prompts and seeds to latents and pictures, with any guidance."""

from ine.decoding import decode, decode_latents
from ine.sampling.edit import edit_latents
from ine.sampling.loop import sample_latents
from ine.sampling.pictures import PictureRequest, Unit, generate, greyed, make_pictures
from ine.sampling.schedulers import SCHEDULERS, alpha_bar_at, make_scheduler
from ine.sampling.settings import SamplerSettings
from ine.sampling.start import Start, generators_of, start_noise
from ine.sampling.unet import answer_queries, run_unet

__all__ = [
    "SCHEDULERS",
    "PictureRequest",
    "SamplerSettings",
    "Start",
    "Unit",
    "alpha_bar_at",
    "answer_queries",
    "decode",
    "decode_latents",
    "edit_latents",
    "generate",
    "generators_of",
    "greyed",
    "make_pictures",
    "make_scheduler",
    "run_unet",
    "sample_latents",
    "start_noise",
]
