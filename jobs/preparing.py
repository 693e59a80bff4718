"""From footage to shards, in this process or on a cluster, with progress and a table at the end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framegrove.config.base import absolute
from framegrove.config.curate import CurateConfig
from framegrove.curation.collecting import Collector, Outcome, Report, collecting
from framegrove.curation.duplicates import DuplicateStage
from framegrove.curation.entries import Entry, read_entries
from framegrove.curation.footage import Footage
from framegrove.errors import UserError
from framegrove.words import counted
from jobs.console import Display, duration, make_folder

if TYPE_CHECKING:
    from rich.table import Table

    from framegrove.curation.clip import Stage
    from framegrove.training.encode import EncoderFiles

PYRAMID = {"stages": 3, "patch": 2}  # of the released models; sizes that they could not be trained on are refused
SHIPPED = "shipped"
_MOST_REASONS = 20  # lines of the table


@dataclass(frozen=True)
class Order:
    """What is prepared, where to, and where: the entries from the ``first`` on, one in every ``parts``."""

    videos: str
    out: Path
    vae: Path
    allow_pickle: bool
    first: int
    parts: int
    on_cluster: bool


def prepare(order: Order, config: CurateConfig, display: Display) -> Report:
    """Prepare everything that is not prepared yet, say what became of it, and return that.

    Raises UserError, also where not one clip was kept.
    """
    from framegrove.models.vae_files import read_vae
    from framegrove.training.encode import EncoderFiles, vae_digest

    vae = read_vae(order.vae, allow_pickle=order.allow_pickle)
    digest, step = vae_digest(vae), vae.config.temporal_factor
    _check_sizes(config, vae.config.spatial_factor)
    _ = Footage(config, digest, step).stages  # what cannot be imported is said before anything starts
    if config.captions is not None and config.captions.model is not None:
        from actors.captions import captioner

        captioner(config.captions)
    del vae  # whoever encodes reads it again
    display.begin(f"looking at {order.videos}")
    entries = read_entries(absolute(order.videos) or "")[order.first :: order.parts]
    if not entries:
        part = f"{order.first + 1}/{order.parts}"
        raise UserError(f"part {part} of {order.videos} is empty: the list has fewer lines than parts")
    text = _text_folder(config)
    pickled = config.text is not None and config.text.allow_pickle
    files = EncoderFiles(order.vae.absolute(), order.allow_pickle, text, pickled)
    embedder = files.embedder()
    make_folder(order.out.parent)
    facts = {**config.deciding(), "vae": digest, "embedder": embedder.digest if embedder else None}
    with collecting(order.out, facts, digest, embedder) as collector:
        footage = Footage(config, digest, step, collector.journal.known())
        run = _on_cluster if order.on_cluster else _in_process
        began = time.monotonic()
        try:
            display.begin(f"preparing {counted(len(entries), 'file')}")
            for outcome in run(entries, footage, collector, files, display):
                collector.add(outcome)
                _show(display, collector.progress, collector.done, len(entries), time.monotonic() - began)
        finally:
            report = collector.report()
            if report.entries:
                _say(display, report, len(entries), time.monotonic() - began)
        if not report.clips:
            first = report.rejections[0]
            raise UserError(
                f"not one clip of the {counted(len(entries), 'file')} in {order.videos} was kept, the first was "
                f"rejected: {first.path} {first.reason}"
            )
    shards = sum(1 for _ in order.out.glob("clips-*.parquet"))
    display.say(f"{counted(len(report.clips), 'clip')} in {counted(shards, 'shard')}: {order.out}")
    return report


def _in_process(
    entries: Sequence[Entry], footage: Footage, collector: Collector, files: EncoderFiles, display: Display
) -> Iterator[Outcome]:
    from framegrove.training.encode import outcomes

    config = footage.config
    later: list[Stage] = []
    if config.duplicates is not None:
        later.append(DuplicateStage(config.duplicates.bits, collector.journal.hashes()))
    with contextlib.ExitStack() as stack:
        if config.captions is not None and config.captions.model is not None:
            from actors.captions import CaptionStage, caption_environment

            os.environ.update(caption_environment(config.captions))  # before anything imports vLLM
            describing = CaptionStage(config.captions)
            stack.callback(describing.close)
            later.append(describing)
        yield from outcomes(entries, footage, later, files)


def _on_cluster(
    entries: Sequence[Entry], footage: Footage, collector: Collector, files: EncoderFiles, display: Display
) -> Iterator[Outcome]:
    from actors import curation
    from framegrove.cluster.session import connect

    display.begin("connecting to Ray")
    with connect(num_cpus=curation.room(footage)) as cluster:
        display.begin(f"preparing {counted(len(entries), 'file')}")
        kept = collector.journal.hashes()
        yield from curation.outcomes(entries, footage, kept, files, cluster)


def _text_folder(config: CurateConfig) -> Path | None:
    from framegrove.models.pretrained import embedded_model

    if config.text is None:
        return None
    folder = embedded_model() if config.text.model == SHIPPED else Path(config.text.model).absolute()
    if not (folder / "text_encoder").is_dir():
        raise UserError(f"there is no text_encoder in text.model, {folder}: give a model folder, or {SHIPPED}")
    return folder


def _check_sizes(config: CurateConfig, factor: int) -> None:
    """Raise UserError for a size that no model could be trained on."""
    from framegrove.config.flow import latent_size

    for height, width in config.sizes:
        latent_size(height, width, factor=factor, **PYRAMID)


def _show(display: Display, progress: Report, done: int, total: int, seconds: float) -> None:
    note = f"{done} of {total}, {progress.new / max(seconds, 1e-3):.2f} clips/s, {progress.seconds / 3600:.2f} h read"
    display.show(done / total, note)


def _say(display: Display, report: Report, total: int, seconds: float) -> None:
    """The table of everything, and what this run has done, in one line."""
    display.console.print(_table(report))
    kept, rejected, gaps = len(report.clips), len(report.rejections), sum(clip.ended_by_gap for clip in report.clips)
    display.say(
        f"{report.entries} of {total} files: {counted(kept, 'clip')} kept, {rejected} rejected; "
        f"{report.seconds / 3600:.2f} h of footage, {report.kept_seconds / 3600:.2f} h in clips; "
        f"{counted(gaps, 'clip')} ended at a gap in time"
    )
    if report.unlisted:
        display.say(
            f"the folder keeps {counted(report.unlisted, 'clip')} from earlier runs, of files or captions that are no "
            "longer listed: for one without them prepare another"
        )
    display.say(
        f"done before: {counted(report.before, 'file')}; {counted(report.new, 'clip')} encoded in {duration(seconds)}, "
        f"{report.new / max(seconds, 1e-3):.2f} clips/s, {report.busy / max(seconds, 1e-3):.0%} of an encoder's time"
    )


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table("", "", "clips", box=None, pad_edge=False)
    reasons = report.reasons()
    for stage, reason, count in reasons[:_MOST_REASONS]:
        table.add_row("rejected", f"{stage}: {reason}", str(count))
    if more := sum(count for *_, count in reasons[_MOST_REASONS:]):
        table.add_row("rejected", "for other reasons", str(more))
    for title, attribute in (("kind", "kind"), ("split", "split"), ("units", "units"), ("captions", "caption_source")):
        for value, count in report.counts(attribute):
            table.add_row(title, str(value) or "none", str(count))
    for (height, width), count in report.counts("size"):
        table.add_row("bucket", f"{width}x{height}", str(count))
    return table
