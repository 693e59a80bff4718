"""A search as it goes on, drawn in the terminal: what ``jobs.generate --watch`` shows.

The drawing is made from snapshots alone, a few times a second; nothing is asked of the search in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from framegrove.evaluation.outlook import Lookout, Outlook
from framegrove.evaluation.report import busy_seconds
from framegrove.evaluation.tree_layout import ASSESSED
from framegrove.lineage import branch_name
from framegrove.search.commands import Attempt
from framegrove.search.result import Ending, Span
from framegrove.search.snapshot import BranchNow, PoolNow, Snapshot, Standing
from framegrove.search.workers import GENERATORS
from framegrove.types import Cost, GenerationRequest, Path, SampleWork, prefixes
from framegrove.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from jobs.console import Display

log = logging.getLogger(__name__)

_EVERY = 0.25  # seconds between two drawings at the least
_SHARE = 0.05  # of the time may go into drawing: large trees are drawn less often
_NAMED = 6  # workers of a pool that get a line each; of more, only the pool has one
_LEAST_LINES = 8  # of the tree, however low the terminal is

STYLE = {
    Standing.WON: "bold green",
    Standing.RUNNING: "cyan",
    Standing.KEPT: "blue",
    Standing.JUDGED: "yellow",
    Standing.SAMPLED: "default",
    Standing.WAITING: "dim",
    Standing.CUT: "red",
}
_INTEREST = list(STYLE)  # most interesting first


@contextlib.asynccontextmanager
async def watching(display: Display, request: GenerationRequest) -> AsyncIterator[Callable[[Lookout], None]]:
    """Draw a search in place of the progress bar, from the moment that it says so to the end of the block.

    The last drawing stays on the screen. Where there is no terminal that can be drawn on, progress comes as lines.
    """
    console = display.console
    if not console.is_terminal or console.is_dumb_terminal:
        display.say("--watch draws on a terminal, and this is none: progress comes as lines")
        yield lambda lookout: None
        return
    tasks: list[asyncio.Task[None]] = []
    try:
        yield lambda lookout: tasks.append(asyncio.create_task(_draw_on(display, request, lookout)))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _draw_on(display: Display, request: GenerationRequest, lookout: Lookout) -> None:
    """Draw until cancelled, and once more then. A failure to draw is logged, and the search goes on without."""
    from rich.live import Live

    def drawing() -> RenderableType:
        snapshot = lookout.look()
        return draw(snapshot, lookout.outlook(snapshot), request, display.console.size.height - 1)

    await asyncio.sleep(0)  # the search begins first
    try:
        with display.giving_way(), Live(console=display.console, auto_refresh=False) as live:
            try:
                while True:
                    began = time.monotonic()
                    live.update(drawing(), refresh=True)
                    await asyncio.sleep(max(_EVERY, (time.monotonic() - began) / _SHARE))
            except asyncio.CancelledError:
                live.update(drawing(), refresh=True)
                raise
    except Exception:
        log.exception("the tree is not drawn any more, the search goes on")


def draw(snapshot: Snapshot, outlook: Outlook, request: GenerationRequest, lines: int) -> RenderableType:
    """A snapshot as something to print, about ``lines`` high: costs, workers, and the tree as far as it fits."""
    from rich.console import Group

    above = [*_title(snapshot, request), *_cost(outlook), _counts(snapshot.branches), *_workers(snapshot)]
    return Group(*above, _tree(snapshot, max(lines - len(above), _LEAST_LINES)))


# ---- costs and workers


def _title(snapshot: Snapshot, request: GenerationRequest) -> Iterator[Text]:
    done = snapshot.certain - len(snapshot.undone)
    yield _line((request.prompt, ""))
    yield _line(
        (f"{_duration(snapshot.seconds)}, {done} of at most {snapshot.at_most} works done", "bold"),
        (f"  {request.policy}, budget {request.budget:g}x, seed {request.seed}", "dim"),
    )


def _cost(outlook: Outlook) -> Iterator[Text]:
    spent = outlook.spent
    yield _line(
        (f"cost {spent.total:.2f}x", "bold"),
        (f", to go {outlook.known:.2f}x certain, about {outlook.at_most:.2f}x at most", ""),
    )
    parts = f"sampling {spent.sampling:.2f}, decoding {spent.decoding:.2f}, judging {spent.judging:.2f}"
    yield _line((f"  {parts}, speculative or wasted {spent.wasted:.2f}", "dim"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _counts(branches: Collection[BranchNow]) -> Text:
    """How many branches there are of each kind."""
    counts = Counter(branch.standing for branch in branches)
    parts = [(f"  {counts[standing]} {standing}", STYLE[standing]) for standing in _INTEREST if counts[standing]]
    return _line((f"{counted(len(branches), 'branch')}:", "bold"), *parts)


def _workers(snapshot: Snapshot) -> Iterator[Text]:
    """A line for every pool, and one for each of its workers where they are few."""
    running: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in snapshot.running:
        running[attempt.worker].append(attempt)
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in snapshot.spans:
        spans[span.worker].append(span)
    for name, pool in snapshot.pools.items():
        busy = {each: _busy(spans[each], running[each], snapshot.seconds) for each in pool.workers}
        yield _pool(name, pool, sum(map(bool, (running[each] for each in pool.workers))), busy)
        idle = "idle: what is to come waits for other works" if pool.waiting else "idle"
        for worker in pool.workers if len(pool.workers) <= _NAMED else ():
            doing = [_doing(attempt, snapshot.seconds) for attempt in running[worker]]
            said = ", ".join(doing[:2]) + (f" and {len(doing) - 2} more" if len(doing) > 2 else "")
            now = (said, "cyan") if said else (idle, "dim")
            yield _line((f"  {worker}  ", ""), (f"{busy[worker]:.0%} busy  ", "dim"), now)


def _pool(name: str, pool: PoolNow, working: int, busy: Mapping[str, float]) -> Text:
    kind = "" if name == GENERATORS or name.startswith("verifier") else "verifier "
    mean = sum(busy.values()) / len(busy)
    load = f"{working} of {len(pool.workers)} at work, {mean:.0%} busy so far"
    return _line((f"{kind}{name}", "bold"), (f"  {load}, {counted(pool.waiting, 'work')} to come", ""))


def _busy(spans: Sequence[Span], running: Sequence[Attempt], now: float) -> float:
    """The share of the time so far in which a worker had something to do."""
    open_ = [Span(each.work, each.worker, each.start, now, Ending.DONE, Cost()) for each in running]
    return busy_seconds([*spans, *open_]) / now if now > 0 else 0.0


def _doing(attempt: Attempt, now: float) -> str:
    work, ahead = attempt.work, ", speculative" if attempt.speculative else ""
    if isinstance(work, SampleWork):
        what = "sampling " + " ".join(map(branch_name, work.paths))
    else:
        what = f"judging {branch_name(work.path)}"
    return f"{what} ({now - attempt.start:.0f} s{ahead})"


# ---- the tree


@dataclass
class _Chosen:
    """The branches that are drawn, and what is left out below each of them (and, under (), at the top)."""

    shown: dict[Path, BranchNow] = field(default_factory=dict)
    hidden: dict[Path, Counter[Standing]] = field(default_factory=lambda: defaultdict(Counter))


def choose(branches: Sequence[BranchNow], lines: int) -> _Chosen:
    """The most interesting branches with all that they grew from, ``lines`` of them at most.

    The winner comes first, then branches at work and those that are kept, deepest first; those that were cut come last.
    """
    known = {branch.path: branch for branch in branches}
    chosen = _Chosen()
    order = sorted(branches, key=lambda b: (_INTEREST.index(b.standing), -len(b.path), b.path))
    for branch in order:
        needed = [path for path in prefixes(branch.path) if path in known and path not in chosen.shown]
        if len(chosen.shown) + len(needed) <= lines:
            chosen.shown.update((path, known[path]) for path in needed)
    for branch in branches:
        if branch.path not in chosen.shown:
            above = next((p for p in reversed(prefixes(branch.path)) if p in chosen.shown), ())
            chosen.hidden[above][branch.standing] += 1
    return chosen


def _tree(snapshot: Snapshot, lines: int) -> RenderableType:
    from rich.tree import Tree

    chosen = choose(snapshot.branches, lines - 1)  # one line counts what is left out at the top
    top = Tree("", hide_root=True, guide_style="dim")
    drawn: dict[Path, Tree] = {(): top}
    holders: dict[Path, Tree] = {(): top}  # what each branch hangs on
    children = Counter(path[:-1] for path in chosen.shown)
    for path in sorted(chosen.shown):
        parent = next(p for p in ((), *prefixes(path[:-1]))[::-1] if p in drawn)  # given units are no branches
        # An only child stands below its parent without an indent: deep trees would not fit otherwise.
        holders[path] = (holders if children[path[:-1]] == 1 else drawn)[parent]
        drawn[path] = holders[path].add(_branch(chosen.shown[path], snapshot.seconds, chosen.hidden.get(path)))
    if () in chosen.hidden:
        top.add(_line(("and" + _left_out(chosen.hidden[()]), "dim")))
    return top


def _branch(branch: BranchNow, now: float, hidden: Counter[Standing] | None) -> Text:
    style = STYLE[branch.standing]
    parts = [
        (f"{branch_name(branch.path)}  ", "bold" if branch.standing is Standing.WON else ""),
        (branch.standing, style),
    ]
    if branch.speculative:
        parts.append((" speculative", "dim"))
    if branch.scores:
        asked, scores = branch.scores[-1]
        parts.append((f"  {ASSESSED[asked]}: " + ", ".join(f"{name} {score:.2f}" for name, score in scores), ""))
    for attempt in branch.attempts:
        what = "sampled" if isinstance(attempt.work, SampleWork) else "judged"
        parts.append((f"  {what} by {attempt.worker} for {now - attempt.start:.0f} s", "cyan"))
    if hidden:
        parts.append((f"  +{_left_out(hidden)}", "dim"))
    return _line(*parts)


def _left_out(hidden: Counter[Standing]) -> str:
    return " " + ", ".join(f"{hidden[standing]} {standing}" for standing in _INTEREST if hidden[standing])


def _line(*parts: tuple[str, str]) -> Text:
    """A line that is cut off rather than broken; what it says is text, never markup."""
    from rich.text import Text

    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
