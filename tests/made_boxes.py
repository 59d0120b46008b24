"""Made network outputs and drawn pictures, for tests of detectors that find boxes."""

import numpy as np


class Session:
    """Stands for the network: gives a made output, whatever it is shown."""

    def __init__(self, output):
        self.output = output

    def run(self, names, inputs):
        assert next(iter(inputs.values())).shape == (1, 3, 320, 320)
        return [self.output]


def made_output(seed, count=300, crowd=40):
    """An output as of the network, (1, 22, 2100): boxes in crowds, some beyond the picture."""
    rng = np.random.default_rng(seed)
    output = np.zeros((1, 22, 2100), np.float32)
    centres = rng.uniform(-20, 340, (crowd, 2))
    sizes = rng.uniform(5, 90, (crowd, 2))
    which = rng.integers(crowd, size=count)
    output[0, :2, :count] = (centres[which] + rng.normal(0, 6, (count, 2))).T
    output[0, 2:4, :count] = (sizes[which] * rng.uniform(0.7, 1.3, (count, 2))).T
    output[0, 4:, :count] = rng.uniform(0, 0.8, (18, count)) * rng.uniform(0, 1, (1, count))
    # Ties, and scores right at the floors.
    output[0, 4:, :6] = 0.1
    output[0, 4, :6] = [0.25, 0.2, 0.3, 0.3, np.nextafter(np.float32(0.25), 1), 0.9]
    return output


def drawn(height=200, width=300, seed=0):
    """A picture with something in it that has the colours of skin."""
    rows, columns = np.mgrid[:height, :width]
    disc = ((rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 3) ** 2)[..., None]
    noise = np.random.default_rng(seed).integers(0, 30, (height, width, 3))
    return (np.where(disc, [205, 150, 125], [60, 90, 160]) + noise).astype(np.uint8)


def plain(found):
    return [(d.label, d.score, d.box) for d in found]
