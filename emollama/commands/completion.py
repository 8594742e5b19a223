"""Print a script with which the shell completes commands and options.

bash: ``emollama completion bash > ~/.local/share/bash-completion/completions/emollama``

zsh: write the script to a file ``_emollama`` in a folder of ``$fpath``.

tcsh: ``emollama completion tcsh > ~/.emollama.tcsh``, and add ``source ~/.emollama.tcsh`` to ``~/.tcshrc``.
"""

from __future__ import annotations

import argparse

from emollama.logs.console import write_plain

HELP = "print a script for shell completion"
EXAMPLE = "emollama completion bash > ~/.local/share/bash-completion/completions/emollama"
DOCS = "README.md#command-line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name of the shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(arguments: argparse.Namespace) -> None:
    """Print the script, which is generated from the parsers of all commands."""
    import shtab

    from emollama.commands.parser import build_parser

    parser = build_parser()
    parser.usage = None
    write_plain(shtab.complete(parser, shell=arguments.shell) + "\n")
