"""The extractor of an ``extraction`` block: reads a folder of videos and writes a folder of features for each encoder."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from emollama.config import RunConfig
from emollama.distributed import process_group
from emollama.encoders.encoder import EncoderDescription
from emollama.errors import UserError
from emollama.extraction import failures
from emollama.extraction.clips import Clips, find_clips
from emollama.extraction.configs import VideoExtractionConfig
from emollama.extraction.disk import write_errors
from emollama.extraction.failures import ExtractionFailure
from emollama.extraction.jobs import Job, describe_encoders, plan_jobs, require_weights
from emollama.extraction.work import Share
from emollama.folder_lock import FolderLock
from emollama.logs.console import dry_run_summary
from emollama.logs.logger import get_logger, set_up
from emollama.media.files import not_videos
from emollama.paths import require_writable, temporary_prefix

MAX_REASONS = 10  # reasons of failures that a summary lists individually


class VideoExtraction:
    """Extracts the features of many videos with every encoder under ``encoders``, one encoder after another.

    Args:
        config: the resolved configuration.

    Raises:
        UserError: If the device is not available.
    """

    Config = VideoExtractionConfig

    def __init__(self, config: RunConfig) -> None:
        self.config, self.cfg = config, config.extraction
        self.output = Path(self.cfg.output)
        self.world = process_group.start(self.cfg.device, "extraction.device")
        set_up(self.world.is_main)
        for text in config.warnings if self.world.is_main else ():
            get_logger().warning("%s", text)
        self._failures: dict[tuple[str, str], ExtractionFailure] = {}  # (folder, clip) -> row, on rank 0

    def run(self) -> None:
        """Extract the features of the clips that have no array yet.

        Raises:
            UserError: If files or weights are not usable (checked before anything is written), the disk is full, or an encoder
                could not process any clip.
        """
        with ExitStack() as stack:
            jobs = self.world.on_rank_zero(lambda: self._prepare(stack))
            outcomes = {job.label: self._extract(job) for job in jobs}
            self.world.on_rank_zero(lambda: self._conclude(outcomes))

    def dry_run(self, processes: int) -> str:
        """Check everything that :meth:`run` checks before it encodes the first video, and write nothing.

        Args:
            processes: number of processes that will extract.

        Returns:
            A summary for the terminal; empty on ranks other than 0.

        Raises:
            UserError: If the configuration, videos or weights are not usable, or existing arrays have other settings.
        """

        def summary() -> str:
            descriptions, clips = self._check()
            failed = {(failure.folder, failure.name) for failure in failures.read(self.output)}
            jobs = plan_jobs(self.config, descriptions, clips, failed)
            videos = f"{len(clips.sources):,} in {self.cfg.videos}; {len(clips.absent):,} listed clips have no video"
            videos += f"; not videos: {not_videos(clips.ignored)}" if clips.ignored else ""
            lines = [["videos", videos], ["output", str(self.output)], ["processes", f"{processes} on {self.world.device.type}"]]
            for job in jobs:
                arrays = f"arrays of shape {job.shape}, {job.cfg.dtype}"
                lines.append([f"encoders.{job.label}", f"{len(job.todo):,} videos to encode, {job.before:,} done; {arrays}"])
            return dry_run_summary(lines)

        text = self.world.on_rank_zero(summary)
        return text if self.world.is_main else ""

    def _check(self) -> tuple[dict[str, EncoderDescription], Clips]:
        """Check everything that needs no lock of the output folder; return the encoders' descriptions and the clips."""
        descriptions = describe_encoders(self.config)
        if self.cfg.peak_index_path is None:
            _require_no_peaks(descriptions)
        clips = find_clips(self.cfg)
        require_weights(self.config)
        require_writable(self.output, "extraction.output")
        return descriptions, clips

    def _prepare(self, stack: ExitStack) -> list[Job]:
        """Check everything, lock the output folder (until ``stack`` closes), and prepare the folders of arrays."""
        descriptions, clips = self._check()
        if clips.ignored:
            get_logger().info("extraction.videos: not videos, and not extracted: %s", not_videos(clips.ignored))
        # The contents of the output folder are read after it is locked, because another extraction may be changing them.
        with write_errors(self.output):
            lock = stack.enter_context(FolderLock(self.output, "extraction.output"))
        if not lock.supported:
            text = "%s: this file system has no locks. Do not start a second extraction into this folder"
            get_logger().info(text, self.output)
        self._failures = {(failure.folder, failure.name): failure for failure in failures.read(self.output)}
        jobs = plan_jobs(self.config, descriptions, clips, set(self._failures))
        for leftover in self.output.glob(f"{temporary_prefix(self.output / failures.FILE)}*"):
            leftover.unlink()
        for job in jobs:
            job.arrays.open(job.manifest)
        return jobs

    def _extract(self, job: Job) -> tuple[int, int]:
        """Encode the clips of one job; return the number of existing arrays and the number of failed clips."""
        start = time.monotonic()
        if job.todo:
            processes = f"{self.world.size} on {self.world.device.type}"
            get_logger().info("%s: %d clips to encode; processes: %s", job.label, len(job.todo), processes)
        shares = self.world.on_all_ranks(lambda: self._work(job))
        done = sum(done for done, _ in shares)
        failed = dict.fromkeys(job.absent, "no video file")
        for _, reasons in shares:
            failed |= reasons
        self.world.on_rank_zero(lambda: self._finish(job, failed))
        get_logger().info("%s", _summary(job, done, failed, time.monotonic() - start))
        return job.before + done, len(failed)

    def _work(self, job: Job) -> tuple[int, dict[str, str]]:
        """Encode this process's share of a job; return the number of encoded clips, and clip name -> reason of a failure."""
        share, key = Share(job, self.world), f"encoders.{job.label}"
        encoder_class = self.config.encoder_class(key)
        try:
            if job.todo:
                encoder = self.world.rank_zero_first(lambda: encoder_class(job.cfg, device=self.world.device, key=key))
                share.work(encoder, self.cfg.num_workers)
        except KeyboardInterrupt:
            # Failures of an interrupted extraction are recorded, too.
            if self.world.is_main:
                self._record(job, share.failed)
            raise
        return share.done, share.failed

    def _finish(self, job: Job, failed: dict[str, str]) -> None:
        """Record the failures of a job, handle their arrays, and pack the arrays if configured."""
        for name in [*job.absent, *(source.name for source in job.todo)]:
            self._failures.pop((job.cfg.folder, name), None)
        self._record(job, failed)
        zeros = np.zeros(job.shape_of_zeros, job.cfg.dtype) if self.cfg.failures == "zero" else None
        job.arrays.require_visible([source.name for source in job.todo if source.name not in failed])
        job.arrays.handle_failures(list(failed), zeros)
        job.arrays.finish()

    def _record(self, job: Job, failed: dict[str, str]) -> None:
        """Add failures of a job and write failures.csv."""
        videos = {source.name: str(source.video) for source in job.todo}
        for name, reason in failed.items():
            failure = ExtractionFailure(name, job.slot, job.label, job.cfg.folder, videos.get(name, ""), reason)
            self._failures[job.cfg.folder, name] = failure
        with write_errors(self.output / failures.FILE):
            failures.write(self.output, self._failures.values())

    def _conclude(self, outcomes: dict[str, tuple[int, int]]) -> None:
        """Log the number of failures.

        Args:
            outcomes: label -> (number of arrays, number of failed clips).

        Raises:
            UserError: If an encoder could not process any clip.
        """
        details = f"{self.output / failures.FILE} lists them with reasons. Run the same command again to retry"
        if without := [f"encoders.{label}" for label, (arrays, _) in outcomes.items() if not arrays]:
            raise UserError(f"{', '.join(without)}: could not process any clip. {details}.")
        if failed := sum(failed for _, failed in outcomes.values()):
            get_logger().info("%d failed. %s", failed, details)


def _require_no_peaks(descriptions: dict[str, EncoderDescription]) -> None:
    for label, description in descriptions.items():
        if description.settings.get("frame_selection") == "peak":
            text = f"encoders.{label}.frame_selection: peak needs extraction.peak_index_path, the file with the peak frames."
            raise UserError(f"{text} Set it, or choose first, middle or random.")


def _summary(job: Job, done: int, failed: dict[str, str], seconds: float) -> str:
    """Return ``mae: 100 clips, 80 done before, 18 done now (3.2 clips/s), 2 failed``, and a line for each reason."""
    clips = job.before + len(job.todo) + len(job.absent)
    speed = f" ({(done + len(failed)) / seconds:.1f} clips/s)" if done else ""
    lines = [f"{job.label}: {clips} clips, {job.before} done before, {done} done now{speed}, {len(failed)} failed"]
    # Numbers are replaced, so that reasons that differ only in a size or time count as one.
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "n", reason) for reason in failed.values()).most_common()
    lines += [f"  {count} {reason}" for reason, count in reasons[:MAX_REASONS]]
    if rest := sum(count for _, count in reasons[MAX_REASONS:]):
        lines.append(f"  {rest} for other reasons")
    return "\n".join(lines)
