"""The value of ``--rdzv-conf``, as that of torchrun, and the options of torchrun that have another name here, or none."""

from __future__ import annotations

import argparse
from typing import NoReturn

from emollama.suggestions import did_you_mean

MOST_DIGITS = 9  # of a number; torch's time spans overflow with more
BOOLEANS = ("1", "true", "t", "yes", "y", "0", "false", "f", "no", "n")  # as torch reads them
IS_HOST = "is_host"
# What the c10d rendezvous of all supported versions of torch reads. torch ignores other keys. store_type is missing, because the
# nodes meet at an address and not in a file.
SECONDS = ("join_timeout", "last_call_timeout", "close_timeout", "heartbeat_timeout", "keep_alive_interval", "read_timeout")
KEYS = (*SECONDS, "keep_alive_max_attempt", IS_HOST)
OTHER_OPTIONS = {
    "--node-rank": "it is not needed: nodes are numbered in the order of their addresses, when they meet at --rdzv. Remove it",
    "--nproc-per-node": "use --nproc N, or --gpus N",
    "--rdzv-endpoint": "use --rdzv HOST:PORT",
    "--master-addr": "use --rdzv HOST:PORT",
    "--rdzv-backend": "it is not needed: nodes always meet with c10d. Remove it",
}


def rendezvous_settings(text: str) -> dict[str, str]:
    """Return the settings of torch's rendezvous, for argparse.

    Raises:
        argparse.ArgumentTypeError: If a key is unknown or occurs twice, or a value has the wrong type.
    """
    settings: dict[str, str] = {}
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise argparse.ArgumentTypeError(f"'{text}' does not have the form KEY=VALUE,KEY=VALUE")
        if key not in KEYS:
            raise argparse.ArgumentTypeError(f"unknown key '{key}'.{did_you_mean(key, KEYS)} Keys: {', '.join(KEYS)}")
        if key in settings:
            raise argparse.ArgumentTypeError(f"{key} occurs twice, with '{settings[key]}' and '{value}'. Keep one")
        _require_value(key, value)
        settings[key] = value
    return settings


def add_other_options(parser: argparse.ArgumentParser) -> None:
    """Add options of torchrun that the help does not list: each is rejected with a text that names what to use."""
    for option, text in OTHER_OPTIONS.items():
        with_underscores = f"--{option[2:].replace('-', '_')}"
        parser.add_argument(option, with_underscores, action=_OtherOption, nargs="?", const=text, help=argparse.SUPPRESS)


class _OtherOption(argparse.Action):
    """An option that is always rejected, with the text ``const``."""

    def __call__(self, *_: object) -> NoReturn:
        raise argparse.ArgumentError(self, str(self.const))


def _require_value(key: str, value: str) -> None:
    if key == IS_HOST:
        if value.lower() not in BOOLEANS:
            raise argparse.ArgumentTypeError(f"{key} must be true or false, not '{value}'")
    elif not (value.isdecimal() and len(value) <= MOST_DIGITS and int(value) > 0):
        unit = " of seconds" if key in SECONDS else ""
        raise argparse.ArgumentTypeError(
            f"{key} must be a whole number{unit} above 0, with at most {MOST_DIGITS} digits, not '{value}'"
        )
