"""Files that are replaced together with their digests, so that an interruption leaves the old or the new file with its digest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emollama import disk
from emollama.errors import UserError
from emollama.file_digests import HashedFile, digest_path, stored_digests
from emollama.paths import atomic_write

ZIP_WRITER = "PytorchStreamWriter|inline_container"  # in messages of torch.save about a file that it cannot write


@contextmanager
def replaced(path: Path) -> Iterator[HashedFile]:
    """Open a temporary file that becomes the file ``path``, with a digest, at the end of the block."""
    with temporary_file(path) as temporary:
        with temporary.open("wb") as file:
            yield (hashed := HashedFile(file))
            file.flush()
            os.fsync(file.fileno())
        put_in_place(path, temporary, hashed.hexdigest())


def put_in_place(path: Path, temporary: Path, sha256: str) -> None:
    """Rename a complete temporary file, and write its digest."""
    digest, line = digest_path(path), f"{sha256}  {path.name}\n"
    earlier = "".join(f"{stored}  {path.name}\n" for stored in stored_digests(digest))
    # The file contains both digests while the checkpoint is replaced, so that one of them fits at any moment.
    with atomic_write(digest) as lines:
        lines.write(earlier + line)
    os.replace(temporary, path)
    with atomic_write(digest) as lines:
        lines.write(line)


def temporary_path(path: Path) -> Path:
    """Return the path of the temporary file for a file. A process that is killed leaves it behind."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Return the path of the temporary file for a checkpoint, and turn errors of writing into user errors."""
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except (OSError, RuntimeError) as error:
        # torch raises the end of a data worker wherever the process is at that moment.
        if ended := next((cause for cause in disk.causes(error) if "DataLoader worker" in str(cause)), None):
            raise ended from None
        if disk.system_error(error) is None and not re.search(ZIP_WRITER, str(error)):
            raise
        text = f"{path} could not be written: {disk.reason(error)}. {disk.remedy(error, 'set another run.output_dir')}"
        raise UserError(f"{text} Earlier checkpoints are intact.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
