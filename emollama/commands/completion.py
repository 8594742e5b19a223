"""``emollama completion``: a script that lets the shell complete commands and options.

Bash: ``emollama completion bash > ~/.local/share/bash-completion/completions/emollama``. Zsh: write the script to a file
``_emollama`` in a folder of ``$fpath``. Tcsh: ``emollama completion tcsh > ~/.emollama.tcsh``, and source it in ``~/.tcshrc``.
"""

from __future__ import annotations

import argparse

from emollama.logs.console import write_plain

HELP = "print a completion script for a shell"
EXAMPLE = "emollama completion bash > ~/.local/share/bash-completion/completions/emollama"
DOCS = "README.md#command-line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell")


def run(arguments: argparse.Namespace) -> None:
    """Print the script; it is generated from the parsers of all commands."""
    import shtab

    from emollama.commands.parser import build_parser

    parser = build_parser()
    parser.usage = None
    write_plain(shtab.complete(parser, shell=arguments.shell) + "\n")
