"""`python -m segpack`: the command."""

from ._command import main

main()
