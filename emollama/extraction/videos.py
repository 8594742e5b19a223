"""The extractor behind an ``extraction`` block: a folder of videos in, a folder of features for each encoder out."""

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
from emollama.extraction.disk import locked, writing
from emollama.extraction.failures import ExtractionFailure
from emollama.extraction.jobs import Job, describe_job, planned, require_weights
from emollama.extraction.work import Share
from emollama.logs.console import dry_run_summary
from emollama.logs.logger import get_logger, set_up
from emollama.paths import require_writable, temporary_prefix

WAIT_MINUTES = 24 * 60.0  # that processes wait for one that packs; one that dies ends all at once
REASONS = 10  # that a summary tells one by one


class VideoExtraction:
    """Extracts the features of many videos with every encoder under ``encoders``, one encoder after another.

    Args:
        config: the resolved configuration.

    Raises:
        UserError: there is no such device.
    """

    Config = VideoExtractionConfig

    def __init__(self, config: RunConfig) -> None:
        self.config, self.cfg = config, config.extraction
        self.output = Path(self.cfg.output)
        self.world = process_group.start(self.cfg.device, WAIT_MINUTES, "extraction.device")
        set_up(self.world.is_main)
        for text in config.warnings if self.world.is_main else ():
            get_logger().warning("%s", text)
        self._failures: dict[tuple[str, str], ExtractionFailure] = {}  # (folder, clip) -> row, on rank 0

    def run(self) -> None:
        """Do what is left to do.

        Raises:
            UserError: anything wrong with files or weights, before anything is written; a full disk; nothing could be done.
        """
        with ExitStack() as held:
            jobs = self.world.on_rank_zero(lambda: self._prepared(held))
            outcomes = {job.label: self._extract(job) for job in jobs}
            self.world.on_rank_zero(lambda: self._conclude(outcomes))

    def dry_run(self, processes: int) -> str:
        """Check everything that :meth:`run` checks before it encodes the first video, and write nothing.

        Args:
            processes: number of processes that will extract.

        Returns:
            A summary, one line per fact; empty on ranks other than 0.

        Raises:
            UserError: anything wrong with the configuration, videos, weights, or the features that exist already.
        """

        def summary() -> str:
            descriptions, clips = self._check()
            jobs = planned(self.config, descriptions, clips, {(row.folder, row.name) for row in failures.read(self.output)})
            videos = f"{len(clips.sources):,} in {self.cfg.videos}; {len(clips.absent):,} listed clips have no video"
            facts = [["videos", videos], ["output", str(self.output)], ["processes", f"{processes} on {self.world.device.type}"]]
            for job in jobs:
                arrays = f"arrays of shape {job.shape}, {job.cfg.dtype}"
                facts.append([f"encoders.{job.label}", f"{len(job.todo):,} videos to encode, {job.before:,} done; {arrays}"])
            return dry_run_summary(facts)

        text = self.world.on_rank_zero(summary)
        return text if self.world.is_main else ""

    def _check(self) -> tuple[dict[str, EncoderDescription], Clips]:
        """Check what can be checked without the output's lock; return what each encoder makes, and the clips."""
        descriptions = describe_job(self.config)
        if self.cfg.peak_index_path is None:
            _refuse_peaks(descriptions)
        clips = find_clips(self.cfg)
        require_weights(self.config)
        require_writable(self.output, "extraction.output")
        return descriptions, clips

    def _prepared(self, held: ExitStack) -> list[Job]:
        """Check everything, then make the folders ready. What lies in the output is looked at behind the lock."""
        descriptions, clips = self._check()
        with writing(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(self.output))
        self._failures = {(row.folder, row.name): row for row in failures.read(self.output)}
        jobs = planned(self.config, descriptions, clips, set(self._failures))
        for left in self.output.glob(f"{temporary_prefix(self.output / failures.FILE)}*"):
            left.unlink()
        for job in jobs:
            job.arrays.open(job.manifest)
        return jobs

    def _extract(self, job: Job) -> tuple[int, int]:
        """Do one encoder's clips; returns how many arrays there are, and how many clips failed."""
        begun = time.monotonic()
        if job.todo:
            place = f"{self.world.size} on {self.world.device.type}"
            get_logger().info("%s: %d clips to do; processes: %s", job.label, len(job.todo), place)
        shares = self.world.on_all_ranks(lambda: self._share(job))
        done = sum(done for done, _ in shares)
        failed = dict.fromkeys(job.absent, "no video file")
        for _, reasons in shares:
            failed |= reasons
        self.world.on_rank_zero(lambda: self._settle(job, failed))
        get_logger().info("%s", _summary(job, done, failed, time.monotonic() - begun))
        return job.before + done, len(failed)

    def _share(self, job: Job) -> tuple[int, dict[str, str]]:
        """Do what this process gets of an encoder's clips; how many are done, and why others failed."""
        share = Share(job, self.world)
        encoder = self.config.classes[f"encoders.{job.label}"]
        try:
            if job.todo:
                made = self.world.rank_zero_first(lambda: encoder(job.cfg, device=self.world.device, key=f"encoders.{job.label}"))
                share.work(made, self.cfg.num_workers)
        except KeyboardInterrupt:
            if self.world.is_main:
                self._record(job, share.failed)
            raise
        return share.done, share.failed

    def _settle(self, job: Job, failed: dict[str, str]) -> None:
        """Every clip of an encoder is done or failed."""
        for name in [*job.absent, *(source.name for source in job.todo)]:
            self._failures.pop((job.cfg.folder, name), None)
        self._record(job, failed)
        zeros = np.zeros(job.shape, job.cfg.dtype) if self.cfg.failures == "zero" else None
        job.arrays.require([source.name for source in job.todo if source.name not in failed])
        job.arrays.settle(list(failed), zeros)
        job.arrays.finish()

    def _record(self, job: Job, failed: dict[str, str]) -> None:
        """Write failures.csv with these rows too."""
        videos = {source.name: str(source.video) for source in job.todo}
        for name, reason in failed.items():
            row = ExtractionFailure(name, job.slot, job.label, job.cfg.folder, videos.get(name, ""), reason)
            self._failures[job.cfg.folder, name] = row
        with writing(self.output / failures.FILE):
            failures.write(self.output, self._failures.values())

    def _conclude(self, outcomes: dict[str, tuple[int, int]]) -> None:
        """Say what failed; ``outcomes`` are label -> (arrays, failed clips)."""
        told = f"{self.output / failures.FILE} says which and why; the same command tries them again"
        if barren := [f"encoders.{label}" for label, (arrays, _) in outcomes.items() if not arrays]:
            raise UserError(f"no features could be extracted by {', '.join(barren)}, of any clip: {told}.")
        if failed := sum(failed for _, failed in outcomes.values()):
            get_logger().info("%d failed: %s", failed, told)


def _refuse_peaks(descriptions: dict[str, EncoderDescription]) -> None:
    for label, description in descriptions.items():
        if description.recipe.get("frame_selection") == "peak":
            text = f"encoders.{label}.frame_selection: peak needs extraction.peak_index_path, which says where the peaks are."
            raise UserError(f"{text} Name it, or choose first, middle or random.")


def _summary(job: Job, done: int, failed: dict[str, str], seconds: float) -> str:
    """``mae: 100 clips, 80 done before, 18 done now (3.2 clips/s), 2 failed``, and a line for each reason."""
    clips = job.before + len(job.todo) + len(job.absent)
    speed = f" ({(done + len(failed)) / seconds:.1f} clips/s)" if done else ""
    lines = [f"{job.label}: {clips} clips, {job.before} done before, {done} done now{speed}, {len(failed)} failed"]
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "n", reason) for reason in failed.values()).most_common()
    lines += [f"  {count} {reason}" for reason, count in reasons[:REASONS]]
    if rest := sum(count for _, count in reasons[REASONS:]):
        lines.append(f"  {rest} for other reasons")
    return "\n".join(lines)
