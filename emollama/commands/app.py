"""Open a page in the browser for questions about videos: answers, label probabilities, and the inputs of the model.

The server listens on this machine only, unless ``--host`` is set. It needs the extra ``app``. With ``--demo``, it has a tiny
model and synthetic videos, which are made on first use.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.commands.arguments import add_options
from emollama.commands.requirements import require_extra
from emollama.errors import UserError

if TYPE_CHECKING:
    from emollama.config import RunConfig

HELP = "show a page for questions about videos in the browser"
EXAMPLE = "emollama app --demo"
DOCS = "docs/serving.md#the-page"
MAX_EXAMPLES = 30
MAX_PIXELS = 10_000_000  # of a frame; those of a 4K video are 8.3 million
MAX_FRAMES = 18_000  # of a video, as in emollama serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the configuration or the demo, the model to compare with, the address, and limits."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--cfg-path", metavar="FILE", help="YAML configuration file")
    source.add_argument("--demo", action="store_true", help="use the demo's model and videos; they are made on first use")
    add_options(parser)
    parser.add_argument("--folder", metavar="FOLDER", help="folder of the demo (default: demo_app)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--compare", metavar="FILE", help="YAML configuration file of a second model, shown beside the first")
    other.add_argument("--compare-checkpoint", metavar="FILE", help="a second checkpoint for the same configuration")
    parser.add_argument("--examples", metavar="FOLDER", help="folder with videos that visitors can pick")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on; 0: a free one (default: 7860)")
    insecure = "let other machines use the page without a password (EMOLLAMA_APP_PASSWORD)"
    parser.add_argument("--insecure", action="store_true", help=insecure)
    host = "further name of the server, such as that of its reverse proxy; the option can be repeated"
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=host)
    parser.add_argument("--max-file-mb", type=int, default=100, metavar="N", help="size of a video in MiB (default: 100)")
    parser.add_argument("--max-seconds", type=float, default=120.0, metavar="S", help="length of a video (default: 120)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for an answer (default: 120)")
    body = "seconds for receiving a video or a question (default: 60)"
    parser.add_argument("--body-timeout", type=float, default=60.0, metavar="S", help=body)


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until SIGTERM or Ctrl-C."""
    require_extra("app", "app")
    if arguments.folder is not None and not arguments.demo:
        raise UserError("--folder is the folder of the demo. Add --demo, or remove --folder.")
    examples = arguments.examples
    if arguments.demo:
        from emollama.demo.environment import restart_with_fast_settings

        # Also for the model, which is as small as that of the other demos.
        restart_with_fast_settings()
        from emollama.demo.page import CHECKPOINT, CONFIG, FOLDER, prepare_page_demo
        from emollama.inference.app.server import import_gradio

        import_gradio()
        root = prepare_page_demo(FOLDER if arguments.folder is None else arguments.folder)
        arguments.cfg_path = CONFIG
        arguments.options = [f"model.ckpt={root / CHECKPOINT}", *arguments.options]
        examples = str(root / "unseen") if examples is None else examples
    _serve(arguments, examples)


def _serve(arguments: argparse.Namespace, examples: str | None) -> None:
    from emollama.entry import leave
    from emollama.inference.app.models import Models, engine_loader, labels_of, require_same_labels
    from emollama.inference.app.previews import PreviewReader
    from emollama.inference.app.server import AppServer, AppSettings, read_password
    from emollama.inference.start_checks import checked_checkpoints
    from emollama.logs.logger import set_up
    from emollama.media.source import MediaLimits

    set_up(is_main=True)
    settings = AppSettings(
        host=arguments.host,
        port=arguments.port,
        allowed_hosts=arguments.allowed_host,
        insecure=arguments.insecure,
        max_file_mb=arguments.max_file_mb,
        max_seconds=arguments.max_seconds,
        timeout=arguments.timeout,
        body_timeout=arguments.body_timeout,
        password=read_password(),
        examples=() if examples is None else _videos(examples),
    )
    limits = MediaLimits(MAX_PIXELS, settings.max_seconds, MAX_FRAMES)
    configs = _configurations(arguments)
    require_same_labels({name: labels_of(config) for name, config in configs.items()})
    (config, *others) = configs.values()
    checked_checkpoints(config)
    for other in others:
        with _renamed("model.ckpt", "model.ckpt" if arguments.compare_checkpoint is None else "--compare-checkpoint"):
            checked_checkpoints(other)
    models = Models(list(configs), [engine_loader(config, limits) for config in configs.values()])
    with closing(PreviewReader(config, limits, settings.timeout)) as read_previews:
        server = AppServer(settings, models, read_previews)
        server.run()
    if server.is_loading:
        # There is no way to end the thread that loads the models.
        leave(0)


@contextmanager
def _renamed(key: str, option: str) -> Iterator[None]:
    """Name an option of this command in errors, in place of the key that it sets."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(key, option)) from None


def _configurations(arguments: argparse.Namespace) -> dict[str, RunConfig]:
    """Return the configurations of one or two models by their names on the page."""
    from emollama.config import load

    first = load(arguments.cfg_path, arguments.options)
    if arguments.compare is not None:
        with _renamed("--cfg-path", "--compare"):
            other, path = load(arguments.compare, []), arguments.compare
    elif arguments.compare_checkpoint is not None:
        other, path = (
            load(arguments.cfg_path, [*arguments.options, f"model.ckpt={arguments.compare_checkpoint}"]),
            arguments.cfg_path,
        )
    else:
        return {_name(arguments.cfg_path, first): first}
    # The letters distinguish runs whose files have the same names.
    return {f"A: {_name(arguments.cfg_path, first)}": first, f"B: {_name(path, other)}": other}


def _name(path: str, config: RunConfig) -> str:
    """Return a name for display: the configuration's file, and the run and the file of its checkpoints."""
    paths = config.model.ckpt
    checkpoints = ["/".join(Path(each).parts[-2:]) for each in ([paths] if isinstance(paths, str) else paths or [])]
    return ", ".join([Path(path).stem, *checkpoints])


def _videos(folder: str) -> list[Path]:
    """Return the first videos of a folder, in the order of their names.

    Raises:
        UserError: If the folder does not exist, or contains no video.
    """
    from emollama.media.files import EXTENSIONS

    if not os.path.isdir(folder):
        raise UserError(f"--examples: no folder '{folder}' (current directory: {os.getcwd()}). Correct the path.")
    videos = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not videos:
        raise UserError(f"--examples: '{folder}' contains no video ({' '.join(EXTENSIONS)}). Correct the path.")
    return videos[:MAX_EXAMPLES]
