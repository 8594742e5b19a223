"""The parser of the command line ``emollama [options] COMMAND [options]``: help and errors."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from emollama import __version__
from emollama.commands import ALIASES, COMMANDS
from emollama.commands.arguments import add_output_options
from emollama.logs.console import write_plain
from emollama.paths import PACKAGE
from emollama.suggestions import did_you_mean

DESCRIPTION = "Train and evaluate multimodal emotion language models."
NAMES = tuple(name for name, _, _ in COMMANDS)
INDENT, NAME_WIDTH = "  ", 16
NEAR = 0.7  # minimum similarity of a suggested option; many short names are similar by chance


class Parser(argparse.ArgumentParser):
    """An argument parser with short errors, which suggest a name for a misspelled command, option or choice.

    An option with values must not be repeated, because argparse would silently use the last one.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | settings)
        self._arguments: Sequence[str] = ()
        self._values: dict[argparse.Action, Sequence[str]] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments as argparse does, but raise the error about an unknown argument here.

        The arguments are stored for :meth:`error`.
        """
        self._arguments, self._values = sys.argv[1:] if args is None else list(args), {}
        parsed, unknown = super().parse_known_args(self._arguments, namespace)
        # argparse reports unknown arguments from the parent parser, whose message would refer to the wrong --help.
        if unknown:
            self.error(f"unexpected argument '{unknown[0]}'.")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2. If there is an unknown option, it is reported in place of ``message``."""
        if unknown := self._unknown_option():
            message = f"unknown option '{unknown}'.{_nearest_option(unknown, self.all_options())}"
        elif message.endswith(": --cfg-path") and (path := self._probable_path()):
            message = f"{message}. Did you mean '--cfg-path {path}'?"
        self.exit(2, f"{self.prog}: error: {message}\n'{self.prog} --help' lists the options.\n")

    def all_options(self) -> Iterator[str]:
        """Yield the option strings of this parser and its sub-parsers."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.all_options()

    def _unknown_option(self) -> str | None:
        """Return the first argument that looks like an option but is not an option of this parser or its sub-parsers."""
        options = set(self.all_options())
        names = [argument.partition("=")[0] for argument in self._arguments]
        # argparse accepts unambiguous prefixes of options.
        return next((name for name in names if _is_option(name) and not any(option.startswith(name) for option in options)), None)

    def _probable_path(self) -> str | None:
        """Return the argument that was probably meant as the value of the missing ``--cfg-path``."""
        first = next((argument for argument in self._arguments[:1] if not argument.startswith("-")), None)
        return next((argument for argument in self._arguments if argument.endswith((".yaml", ".yml"))), first)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(action, f"invalid choice: '{value}'.{hint} Choices: {', '.join(choices)}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Return the values of one occurrence of an argument; raise an ArgumentError for a repeated option."""
        if action.option_strings and isinstance(action, argparse._StoreAction):
            if action in self._values:
                first, second = (" ".join(values) for values in (self._values[action], arg_strings))
                remedy = "Keep one." if action.nargs is None else f"Write all values after one {action.option_strings[0]}."
                raise argparse.ArgumentError(action, f"the option occurs twice, with '{first}' and '{second}'. {remedy}")
            self._values[action] = arg_strings
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a message; unlike argparse, report an error if the help cannot be written."""
        if file is sys.stdout:
            write_plain(message)
        else:
            super()._print_message(message, file)


def build_parser(names: Sequence[str] = NAMES) -> Parser:
    """Build the parser of the command line.

    Args:
        names: the commands that the parser accepts. Only their modules are imported.
    """
    parser = Parser(prog="emollama", usage="%(prog)s [options] COMMAND ...", description=DESCRIPTION, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    parser.add_argument("--version", action="version", version=f"emollama {__version__}", help="show the version and exit")
    add_output_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", prog="emollama", parser_class=Parser)
    modules = {name: module for name, _, module in COMMANDS}
    for name in names:
        module = _module(modules[name])
        documentation = f"documentation: {pages() / module.DOCS}"
        description = re.sub(r"``(.+?)``", r"\1", module.__doc__ or "", flags=re.DOTALL)
        about = f"example: {module.EXAMPLE}\n{documentation}"
        command = commands.add_parser(name, help=module.HELP, description=_wrapped(description), epilog=about)
        module.add_arguments(command)
        _complete(command, documentation)
        command.set_defaults(run=module.run)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Only the module of its command is imported.

    Args:
        arguments: the command line without the name of the program.

    Returns:
        The arguments. ``run`` is the function of the command; without a command, it prints the help of the program.

    Raises:
        SystemExit: With status 2 after an error, and 0 after ``--help`` before or after a command, or after ``--version``.
    """
    index = next((index for index, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    before = [word for word in arguments[:index] if word != "--"]
    first = _parse_before(before, arguments[index:])
    name, rest = (ALIASES.get(arguments[index], arguments[index]), arguments[index + 1 :]) if arguments[index:] else (None, ())
    if name is not None and name not in NAMES:
        hint = did_you_mean(name, NAMES)
        sys.stderr.write(f"emollama: error: unknown command '{name}'.{hint}\n'emollama --help' lists the commands.\n")
        raise SystemExit(2)
    parser = build_parser([name] if name else [])
    if name is not None and first.help:
        # Prints the help of the command or sub-command, and exits.
        sub_commands = itertools.takewhile(lambda word: not word.startswith("-"), rest)
        parser.parse_args([name, *sub_commands, "--help"])
    parsed = parser.parse_args([*before, *([name, *rest] if name else [])])
    # argparse misses the conflict if one option precedes the command and the other follows it.
    if getattr(parsed, "quiet", False) and getattr(parsed, "verbose", False):
        parser.error("argument -v/--verbose: not allowed with argument -q/--quiet")
    if name is None:
        parsed.run = lambda _: write_plain(overview())
    return parsed


def _parse_before(options: Sequence[str], rest: Sequence[str]) -> argparse.Namespace:
    """Parse the options that precede the command, which must be options of the program.

    Raises:
        SystemExit: With status 2, for any other option. If the option belongs to a command, the message says that it must follow
            the command.
    """
    parser = build_parser([])
    program_options = set(parser.all_options())
    for option in (option.partition("=")[0] for option in options):
        if option.startswith("--") and option not in program_options:
            command = [ALIASES.get(word, word) for word in rest if word in NAMES or word in ALIASES][:1]
            if any(option in build_parser([name]).all_options() for name in command or NAMES):
                usage = f"emollama {command[0] if command else 'COMMAND'} {option} ..."
                parser.error(f"'{option}' must follow the command: {usage}")
    return parser.parse_args(options)


def overview() -> str:
    """Return the help of the program: usage, options, and all commands by group, with an example and a link for each."""
    parser = build_parser([])
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    options = argparse.HelpFormatter(parser.prog, max_help_position=NAME_WIDTH + 2 * len(INDENT) + 2, width=width)
    options.start_section("Options")
    options.add_arguments([action for action in parser._actions if action.option_strings])
    options.end_section()
    parts = [f"usage: emollama [options] COMMAND ...\n\n{DESCRIPTION}\n\n{options.format_help().rstrip()}"]
    for group in dict.fromkeys(group for _, group, _ in COMMANDS):
        entries = [_entry(name, _module(module), width) for name, belongs, module in COMMANDS if belongs == group]
        parts.append("\n".join([f"{group}:", *entries]))
    parts.append(f"'emollama COMMAND --help' describes a command. The pages listed above are in {pages()}.")
    return "\n\n".join(parts) + "\n"


def pages() -> Path:
    """Return the folder with README.md and docs/: the root of a clone, or the package, which contains copies."""
    return (PACKAGE / "README.md").resolve().parent


def _entry(name: str, module: Any, width: int) -> str:
    """Return the lines of one command in the help of the program."""
    inner = INDENT * 2 + " " * NAME_WIDTH
    text = textwrap.fill(module.HELP, width, initial_indent=f"{INDENT}{name:<{NAME_WIDTH}}{INDENT}", subsequent_indent=inner)
    return f"{text}\n{inner}$ {module.EXAMPLE}\n{inner}{module.DOCS}"


def _wrapped(description: str) -> str:
    """Return a description with its paragraphs wrapped to the width of the terminal."""
    width = max(40, shutil.get_terminal_size().columns - 2)
    paragraphs = [" ".join(paragraph.split()) for paragraph in description.strip().split("\n\n")]
    return "\n\n".join(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) for text in paragraphs)


def _complete(parser: argparse.ArgumentParser, documentation: str) -> None:
    """Add the options of the program to a command and its sub-commands, and a description and an epilog to sub-commands."""
    add_output_options(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                summary = summaries[name]
                inner.description = _wrapped(inner.description or f"{summary[:1].upper()}{summary[1:]}.")
                inner.epilog = documentation
                _complete(inner, documentation)


def _module(name: str) -> Any:
    return importlib.import_module(f"emollama.commands.{name}")


def _nearest_option(option: str, options: Iterable[str]) -> str:
    """Return a sentence that suggests an option. The dashes, which all options share, do not count as similar."""
    names = {option.removeprefix("--") for option in options if option.startswith("--")}
    return did_you_mean(option.removeprefix("--"), names, NEAR).replace("'", "'--", 1) if option.startswith("--") else ""


def _is_option(argument: str) -> bool:
    long = argument.startswith("--") and len(argument) > 2
    return long or (len(argument) == 2 and argument[0] == "-" and argument[1].isalpha())
