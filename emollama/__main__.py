"""The program ``python -m emollama <command>``."""

from emollama.cli import main

main()
