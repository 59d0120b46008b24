"""A folder of generated pictures: PNGs that carry their settings, an index, a contact sheet."""
