"""The command, where its script is not installed."""

from . import main

main()
