"""What foreign files say, made fit for a terminal."""


def printable(text):
    """Replace control characters: a foreign file's header must not drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
