"""What a search leaves in its folder: the video, its tree as pictures and as a page, and the report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from framegrove.files import write_json
from framegrove.words import counted

if TYPE_CHECKING:
    from framegrove.evaluation.report import SearchRecord

REPORT = "report.json"  # the last file of a finished search
WRITTEN = ("video.mp4", "tree.png", "tree.html", "slide.png", REPORT)
log = logging.getLogger(__name__)


def write(
    record: SearchRecord, out: Path, more: dict[str, object] | None = None, single: SearchRecord | None = None
) -> None:
    """Write video, pictures and report (with ``more`` in it) into a folder; no name ever stands for half a file.

    ``single`` is the sample without a search, where it was made too.
    """
    from framegrove.evaluation import tree_page, tree_picture
    from framegrove.evaluation.report import report_json
    from framegrove.files import replacing
    from framegrove.media.writing import encode_mp4

    with replacing(out / "video.mp4") as partial:
        partial.write_bytes(encode_mp4(record.frames, record.fps))
    beside = single.frames if single is not None else None
    tree_picture.draw(record, out / "tree.png", beside)
    tree_picture.draw_slide(record, out / "slide.png", beside)
    tree_page.write(record, out / "tree.html")
    write_json(out / REPORT, {**report_json(record), **(more or {})})


def report_line(record: SearchRecord) -> str:
    """What was done and what it cost, in a sentence; the price is the one on the pictures and in the report."""
    outcome, price, budget = record.outcome, record.price, record.request.budget
    line = f"{counted(len(outcome.nodes), 'branch')} in {outcome.seconds:.1f} s at a price of {price}"
    if outcome.restored:
        line += f", with {counted(outcome.restored, 'work')} from before the interruption"
    if price.total > budget >= price.total - price.wasted:
        line += f"; the budget of {budget:g}x bounds all but what was wasted"
    return line + (f"; scoring overlapped sampling for {outcome.overlap:.1f} s" if outcome.scoring.spent.flops else "")


def warn(record: SearchRecord) -> None:
    """Log what a reader of the result should know."""
    from framegrove.evaluation.report import warnings_of

    for warning in warnings_of(record):
        log.warning(warning)
