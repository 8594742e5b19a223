"""Serve a model over HTTP: chat completions in OpenAI's format, and the emotions of a clip.

The server listens on this machine only, unless ``--host`` is set. It needs the extra ``serve``.

To use the folder of a training run, specify its config.yaml with ``--cfg-path``, and its checkpoint with
``--options model.ckpt=FOLDER/checkpoint_best.pth``.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from emollama.commands.arguments import add_run_arguments
from emollama.commands.requirements import require_extra

if TYPE_CHECKING:
    from emollama.inference.engine import Engine

HELP = "serve the model over HTTP, with OpenAI-compatible routes"
EXAMPLE = "emollama serve --cfg-path train_configs/demo_videos.yaml --options model.ckpt=demo_videos/trained/checkpoint_2.pth"
DOCS = "docs/serving.md#start-the-server"
DTYPES = {
    "fp32": ["run.amp=False"],
    "bf16": ["run.amp=True", "run.amp_dtype=bf16"],
    "fp16": ["run.amp=True", "run.amp_dtype=fp16"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the configuration, the address, the model, access and limits."""
    add_run_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on; 0: a free one (default: 8000)")
    parser.add_argument("--model-name", metavar="NAME", help="name of the model in requests (default: that of the configuration)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="device of the model (default: run.device)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="precision of the model (default: run.amp and run.amp_dtype)")
    url = "address of a vLLM server that runs the language model, with prompt embeddings"
    parser.add_argument("--engine-url", metavar="URL", help=url)
    parser.add_argument("--preload", action="store_true", help="load the model before listening, not afterwards")
    _add_access(parser)
    _add_limits(parser)


def _add_access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("access")
    insecure = "serve other machines without an API key (EMOLLAMA_API_KEY)"
    group.add_argument("--insecure", action="store_true", help=insecure)
    host = "further name of the server, such as that of its reverse proxy; the option can be repeated"
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=host)
    group.add_argument("--allow-files", metavar="FOLDER", help="let clients name files below this folder of the server")
    urls = "let clients send URLs of public addresses, and of these networks, such as 10.1.0.0/16"
    group.add_argument("--allow-urls", nargs="*", metavar="NETWORK", help=urls)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument("--max-body-mb", type=int, default=100, metavar="N", help="size of a request in MiB (default: 100)")
    seconds = "seconds of a video or of audio (default: 300)"
    group.add_argument("--max-seconds", type=float, default=300.0, metavar="S", help=seconds)
    frames = "frames of a video (default: 18000, those of 300 seconds at 60 per second)"
    group.add_argument("--max-frames", type=int, default=18000, metavar="N", help=frames)
    pixels = "pixels of a frame or an image (default: 9437184, those of 4096 x 2304)"
    group.add_argument("--max-pixels", type=int, default=4096 * 2304, metavar="N", help=pixels)
    group.add_argument("--max-waiting", type=int, default=64, metavar="N", help="requests in the queue (default: 64)")
    batch = "requests that are answered together (default: 32)"
    group.add_argument("--max-batch-size", type=int, default=32, metavar="N", help=batch)
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for an answer (default: 120)")
    body = "seconds for receiving a request, or for downloading a URL (default: 60)"
    group.add_argument("--body-timeout", type=float, default=60.0, metavar="S", help=body)


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from emollama.config import load
    from emollama.entry import leave
    from emollama.logs.logger import set_up

    require_extra("serve", "serve")
    from emollama.inference.serve.loading import load_engine
    from emollama.inference.serve.served_model import trained_tasks
    from emollama.inference.serve.server import Server
    from emollama.inference.serve.settings import ServeSettings, read_key
    from emollama.inference.start_checks import checked_checkpoints

    settings = ServeSettings(
        host=arguments.host,
        port=arguments.port,
        model=arguments.model_name or Path(arguments.cfg_path).stem,
        preload=arguments.preload,
        allow_files=arguments.allow_files,
        allow_urls=arguments.allow_urls,
        allowed_hosts=arguments.allowed_host,
        insecure=arguments.insecure,
        max_body_mb=arguments.max_body_mb,
        max_seconds=arguments.max_seconds,
        max_frames=arguments.max_frames,
        max_pixels=arguments.max_pixels,
        max_waiting=arguments.max_waiting,
        max_batch_size=arguments.max_batch_size,
        timeout=arguments.timeout,
        body_timeout=arguments.body_timeout,
        engine_url=arguments.engine_url,
        key=read_key(),
    )
    config = load(arguments.cfg_path, [*arguments.options, *_options(arguments)])
    set_up(is_main=True)
    tasks = trained_tasks(checked_checkpoints(config, is_remote=settings.engine_url is not None))

    def load_frozen() -> Engine:
        engine = load_engine(config, settings)
        # The collector then looks only at the objects of requests. Otherwise it runs so rarely that their memory adds up.
        gc.collect()
        gc.freeze()
        return engine

    server = Server(settings, load_frozen, tasks)
    server.run()
    if server.is_loading:
        # There is no way to end the thread that loads the model.
        leave(0)


def _options(arguments: argparse.Namespace) -> list[str]:
    """Return ``--device`` and ``--dtype`` as values of the configuration."""
    options = [] if arguments.device is None else [f"run.device={arguments.device}"]
    return options + (DTYPES[arguments.dtype] if arguments.dtype else [])
