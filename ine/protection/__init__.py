"""A diffusers pipeline of the user's own, defended."""
