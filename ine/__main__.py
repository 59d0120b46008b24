"""`python -m ine`."""

from ine.cli import main

main()
