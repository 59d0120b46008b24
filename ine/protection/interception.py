"""Standing between a pipeline and its U-Net, and noticing when something gets past.

Nothing here knows what is answered. An `Interception` puts a function in the place of a module's
own call, wherever that call begins: above a compiled graph, below accelerate's hooks, else in the
place of `forward`. Whether it still stands there is checked before and after every run, and after
every call; a call that went past it is an error and no picture.
"""

import inspect
from collections.abc import Callable, Mapping
from types import FrameType

import torch

from ine.errors import IneError, ModelError

COMPILED = "_compiled_call_impl"
"""Where `module.compile()` keeps what is called instead of the module."""

PLACES = (COMPILED, "_old_forward", "forward")
"""Attributes of a module that may hold its call, the outermost first. accelerate's hooks keep the
module's own forward in `_old_forward`, and diffusers takes them off and on after every call."""

CACHES = ("DeepCache", "tgate")
"""Packages that replace a U-Net's forwards by ones that remember; diffusers' own are hooks."""

TAKEN_OFF = (
    "something took the protection off the U-Net's forward (offloading, a cache or a compiler "
    "that was switched after protect?); call .remove(), then protect as the last step"
)


def original(module: object) -> object:
    """Return what `torch.compile(module)` wraps, or the module itself."""
    return getattr(module, "_orig_mod", module)


def holder_of(module: torch.nn.Module) -> object:
    """Return the object whose method stands in the place of the module's call, or None.

    A module, its own forward included, holds itself.
    """
    for one in (module, original(module)):
        for place in PLACES:
            owner = getattr(one.__dict__.get(place), "__self__", None)
            if owner is not None and owner is not one and not isinstance(owner, torch.nn.Module):
                return owner
    return None


class Interception:
    """A function in the place of a module's call, until `release`."""

    def __init__(self, module: torch.nn.Module, answer: Callable):
        """Take the module's calls.

        Args:
            module: The module, compiled or not, hooked or not.
            answer: A bound method; gets the call's arguments, and asks `forward` for the
                module's own answers. Dynamo must not trace it.
        """
        self.module, self._answer = module, answer
        self._seen = False
        self._guard = None
        self._take()

    def _take(self) -> None:
        held = self.module.__dict__
        compiled = held.get(COMPILED) is not None
        self._place = COMPILED if compiled else "_old_forward" if PLACES[1] in held else "forward"
        self._own = self._place in held
        self.forward = getattr(self.module, self._place)
        setattr(self.module, self._place, self._answer)
        if not compiled:  # there nothing lies above, and the graph would have to hold the hook
            self._guard = self.module.register_forward_hook(self._check_seen)

    def release(self) -> None:
        """Give the module its own call back; whatever came between stays."""
        if self._guard is not None:
            self._guard.remove()
            self._guard = None
        held = self.module.__dict__
        for place in PLACES:
            if held.get(place) == self._answer:
                if place == "forward" and not self._own:
                    del held[place]
                else:
                    setattr(self.module, place, self.forward)

    def follow(self, module: torch.nn.Module) -> None:
        """Go on after the module was compiled, wrapped by the compiler or unwrapped again.

        Raises:
            IneError: It is another module.
        """
        if original(module) is not original(self.module):
            raise IneError(
                "the pipeline's U-Net was replaced after protect; call .remove(), then protect"
            )
        call = module.__dict__.get(COMPILED)
        if module is not self.module or (call is not None and call != self._answer):
            self.release()
            self.module = module
            self._take()

    def check(self, module: torch.nn.Module) -> None:
        """Raise `IneError` where calls of the pipeline's U-Net would not be answered."""
        compiled = module.__dict__.get(COMPILED)
        if self._place == COMPILED:
            held = compiled == self._answer
        else:
            guarded = self._guard is not None and self._guard.id in module._forward_hooks
            held = guarded and compiled is None
        if not held or module is not self.module:
            raise IneError(TAKEN_OFF)

    def answered(self) -> None:
        """Note that a call was answered."""
        self._seen = True

    @torch.compiler.disable
    def _check_seen(self, *_: object) -> None:
        """Raise rather than let an undefended prediction through."""
        seen, self._seen = self._seen, False
        if not seen:
            raise IneError(TAKEN_OFF)


def check_is_module(module: object, what: str, needed: str) -> None:
    """Raise `ModelError` for what was traced or exported: no hook can reach into that."""
    if not isinstance(module, torch.nn.Module) or not hasattr(module, needed):
        raise ModelError(
            f"the pipeline's {what} is a {type(module).__name__}, which is no module of torch's as "
            "diffusers loads it; what was traced or exported cannot be defended, load it without"
        )


def cache_of(unet: torch.nn.Module) -> str | None:
    """Return what keeps the U-Net's answers from one call to the next, or None.

    Such a cache takes the second call of a step for the next step, and answers it with what it
    kept of the first, whose text was another.
    """
    for name, module in unet.named_modules():
        hooks = getattr(module.__dict__.get("_diffusers_hook"), "hooks", {})
        kinds = [kind for kind, hook in hooks.items() if getattr(hook, "_is_stateful", False)]
        package = getattr(module.__dict__.get("forward"), "__module__", None) or ""
        kinds += [cache for cache in CACHES if package.split(".")[0] == cache]
        if kinds:
            return f"{kinds[0]}, at {name or 'its forward'}"
    return None


def once(forward: Callable, cache: str | None) -> Callable:
    """Return a U-Net's forward that, where it has a cache, refuses a second call."""
    asked = False

    def call(*args: object, **kwargs: object) -> object:
        nonlocal asked
        if asked and cache:
            raise IneError(
                f"the U-Net has a cache ({cache}) and this guidance asks it more than once a step; "
                "the cache would answer for one text with what it kept of another: switch it off, "
                "or use guidance='cfg' without a gate and without a negative prompt"
            )
        asked = True
        return forward(*args, **kwargs)

    return call


def check_loop(frame: FrameType, pipe: object, known: tuple[str, ...]) -> None:
    """Raise where a denoising loop is not one that is known, or runs for another pipeline.

    Args:
        frame: The frame that opened the progress bar.
        pipe: The pipeline that is protected.
        known: Names of diffusers' classes whose loops are known.

    Raises:
        IneError: It is a copy's, or a subclass has a loop of its own.
    """
    if frame.f_locals.get("self") is not pipe:
        raise IneError(
            "a copy of the protected pipeline was called, and the handle belongs to the first "
            "one; call .remove(), copy, then protect each"
        )
    loops = [
        inspect.unwrap(c.__call__).__code__
        for c in type(pipe).__mro__
        if c.__name__ in known and c.__module__.startswith("diffusers.")
    ]
    if frame.f_code not in loops:
        raise IneError(
            f"{type(pipe).__name__} has a denoising loop of its own ({frame.f_code.co_name} in "
            f"{frame.f_code.co_filename}), and which rows of it are the negative's is unknown; "
            "make a pipeline of diffusers' own class from it, by from_pipe, and protect that"
        )


def check_components(pipe: object, kept: Mapping[str, object]) -> None:
    """Raise where a tokenizer or text encoder is another one than it was.

    One that was taken out (for prompt_embeds, to save memory) changes nothing.

    Args:
        pipe: The pipeline.
        kept: What it had, by name, when the embedding was first encoded.

    Raises:
        IneError: The embedding would be encoded by what the pipeline no longer uses.
    """
    for name, own in kept.items():
        now = getattr(pipe, name, None)
        if now is not None and original(now) is not original(own):
            raise IneError(
                f"the pipeline's {name} was replaced after the embedding was encoded; call "
                ".remove(), then protect (of a guider: build it again)"
            )
