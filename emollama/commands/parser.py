"""The command line: ``emollama [options] COMMAND [options]``, its help, and its errors."""

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
from emollama.registry import did_you_mean

DESCRIPTION = "Train and evaluate multimodal emotion language models."
NAMES = tuple(name for name, _, _ in COMMANDS)
INDENT, NAME_WIDTH = "  ", 16
NEAR = 0.7  # least similarity of a suggested option: short words resemble each other by chance


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest name for a misspelled command, option or choice.

    An option with values is given at most once, because argparse would take the last one silently.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | settings)
        self._given: Sequence[str] = ()
        self._values: dict[argparse.Action, Sequence[str]] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but an unknown argument is an error here: a parent's message would name the parent's help.

        The arguments are remembered for :meth:`error`.
        """
        self._given, self._values = sys.argv[1:] if args is None else list(args), {}
        parsed, unknown = super().parse_known_args(self._given, namespace)
        if unknown:
            self.error(f"unexpected argument '{unknown[0]}'.")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2. An unknown option is named even if argparse complains of something else first."""
        if unknown := self._unknown_option():
            message = f"unknown option '{unknown}'.{_nearest_option(unknown, self.known_options())}"
        elif message.endswith(": --cfg-path") and (path := self._probable_path()):
            message = f"{message}. Did you mean '--cfg-path {path}'?"
        self.exit(2, f"{self.prog}: error: {message}\n'{self.prog} --help' lists the options.\n")

    def known_options(self) -> Iterator[str]:
        """The option strings of this parser and of its sub-parsers."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.known_options()

    def _unknown_option(self) -> str | None:
        """The first argument that is an option, but none of this parser or of its sub-parsers."""
        known = set(self.known_options())
        words = [word.partition("=")[0] for word in self._given]
        return next((word for word in words if _is_option(word) and not any(each.startswith(word) for each in known)), None)

    def _probable_path(self) -> str | None:
        """The argument that was probably meant as the value of ``--cfg-path``, which is missing."""
        first = next((word for word in self._given[:1] if not word.startswith("-")), None)
        return next((word for word in self._given if word.endswith((".yaml", ".yml"))), first)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(action, f"invalid choice: '{value}'.{hint} Choices: {', '.join(choices)}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The values of one occurrence of an argument."""
        if action.option_strings and isinstance(action, argparse._StoreAction):
            if action in self._values:
                both = [" ".join(words) for words in (self._values[action], arg_strings)]
                remedy = "Keep one." if action.nargs is None else f"Write all values after one {action.option_strings[0]}."
                raise argparse.ArgumentError(action, f"given twice, with '{both[0]}' and '{both[1]}'. {remedy}")
            self._values[action] = arg_strings
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse does it, but help that cannot be written is an error."""
        if file is sys.stdout:
            write_plain(message)
        else:
            super()._print_message(message, file)


def build_parser(names: Sequence[str] = NAMES) -> Parser:
    """The parser of the whole command line.

    Args:
        names: commands whose modules are imported; the parser knows only these.
    """
    parser = Parser(prog="emollama", usage="%(prog)s [options] COMMAND ...", description=DESCRIPTION, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    parser.add_argument("--version", action="version", version=f"emollama {__version__}", help="show the version and exit")
    add_output_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", prog="emollama", parser_class=Parser)
    modules = {name: module for name, _, module in COMMANDS}
    for name in names:
        module = _module(modules[name])
        about = f"example: {module.EXAMPLE}\ndocumentation: {pages() / module.DOCS}"
        description = re.sub(r"``(.+?)``", r"\1", textwrap.dedent(module.__doc__ or ""), flags=re.DOTALL)
        command = commands.add_parser(name, help=module.HELP, description=description, epilog=about)
        module.add_arguments(command)
        _add_to_all(command)
        command.set_defaults(run=module.run)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; only the module of the command in it is imported.

    Args:
        arguments: without the name of the program.

    Returns:
        ``run`` is the command's function; without a command it prints the help of the program.

    Raises:
        SystemExit: 2 after an error, 0 after ``--help`` before or after a command, or ``--version``.
    """
    place = next((place for place, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    before = [word for word in arguments[:place] if word != "--"]
    first = _parsed_before(before, arguments[place:])
    name, rest = (ALIASES.get(arguments[place], arguments[place]), arguments[place + 1 :]) if arguments[place:] else (None, ())
    if name is not None and name not in NAMES:
        hint = did_you_mean(name, NAMES)
        sys.stderr.write(f"emollama: error: unknown command '{name}'.{hint}\n'emollama --help' lists the commands.\n")
        raise SystemExit(2)
    parser = build_parser([name] if name else [])
    if name is not None and first.help:
        words = itertools.takewhile(lambda word: not word.startswith("-"), rest)
        parser.parse_args([name, *words, "--help"])  # exits
    parsed = parser.parse_args([*before, *([name, *rest] if name else [])])
    if getattr(parsed, "quiet", False) and getattr(parsed, "verbose", False):  # one before the command, one after it
        parser.error("argument -v/--verbose: not allowed with argument -q/--quiet")
    if name is None:
        parsed.run = lambda _: write_plain(overview())
    return parsed


def _parsed_before(words: Sequence[str], rest: Sequence[str]) -> argparse.Namespace:
    """The options before the command, parsed; only the program's own are taken there.

    Raises:
        SystemExit: 2 for another option; the message says so if it belongs to a command.
    """
    parser = build_parser([])
    known = set(parser.known_options())
    for word in (word.partition("=")[0] for word in words):
        if word.startswith("--") and word not in known:
            named = [ALIASES.get(each, each) for each in rest if each in NAMES or each in ALIASES][:1]
            if any(word in build_parser([name]).known_options() for name in named or NAMES):
                parser.error(f"'{word}' follows the command: emollama {named[0] if named else 'COMMAND'} {word} ...")
    return parser.parse_args(words)


def overview() -> str:
    """The help of the program: usage, options, and the commands by group, each with an example and a link."""
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
    parts.append(f"'emollama COMMAND --help' describes a command. The pages named above are in {pages()}.")
    return "\n\n".join(parts) + "\n"


def pages() -> Path:
    """The folder of README.md and docs/: that of a clone, or the package itself, which has copies of them."""
    return (PACKAGE / "README.md").resolve().parent


def _entry(name: str, module: Any, width: int) -> str:
    """The lines of one command."""
    inner = INDENT * 2 + " " * NAME_WIDTH
    text = textwrap.fill(module.HELP, width, initial_indent=f"{INDENT}{name:<{NAME_WIDTH}}{INDENT}", subsequent_indent=inner)
    return f"{text}\n{inner}$ {module.EXAMPLE}\n{inner}{module.DOCS}"


def _add_to_all(parser: argparse.ArgumentParser) -> None:
    """Accept the program's own options after the command too, and after its sub-commands."""
    add_output_options(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _add_to_all(inner)


def _module(name: str) -> Any:
    return importlib.import_module(f"emollama.commands.{name}")


def _nearest_option(word: str, known: Iterable[str]) -> str:
    """The hint for an unknown option. The dashes, which all options share, do not count as similar."""
    names = {option.removeprefix("--") for option in known if option.startswith("--")}
    return did_you_mean(word.removeprefix("--"), names, NEAR).replace("'", "'--", 1) if word.startswith("--") else ""


def _is_option(word: str) -> bool:
    return (word.startswith("--") and len(word) > 2) or (len(word) == 2 and word[0] == "-" and word[1].isalpha())
