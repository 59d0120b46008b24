"""State dicts of U-Nets as erasers publish them."""

STRICT = ("attn2.to_k.weight", "attn2.to_v.weight")
"""Keys and values of cross-attention."""


def only(state, test):
    """The tensors whose name passes a test."""
    return {name: tensor for name, tensor in state.items() if test(name)}


def strict(state):
    """Keys and values of cross-attention alone, as ESD-x and UCE change them."""
    return only(state, lambda name: name.endswith(STRICT))


def nested(state):
    """As alt_esd_diffusers.py writes: {"unet.<module path>": {"weight": T, "bias": T}}."""
    made = {}
    for name, tensor in state.items():
        module, leaf = name.rsplit(".", 1)
        made.setdefault(f"unet.{module}", {"weight": None, "bias": None})[leaf] = tensor
    return made
