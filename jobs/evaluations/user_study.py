"""What jobs.evaluate --study does: serves pairs of an evaluation's videos to people, and tells what they choose."""

from __future__ import annotations

import contextlib
import csv
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError
from framegrove.words import counted
from jobs.evaluations.comparing import LEDGER

if TYPE_CHECKING:
    from framegrove.evaluation.user_study import Choice, ComparedGroup, Pair, QuestionResult
    from framegrove.evaluation.user_study_store import StudyStore
    from jobs.console import Display

FIGURES = "user_study.json"


def serve(folder: Path, host: str, port: int, display: Display) -> None:
    """Serve the page until it is interrupted, and then tell what people have chosen. Raises UserError."""
    import uvicorn

    from framegrove.evaluation.user_study_web import build_study

    pairs, store = _opened(folder)
    try:
        listening = _listening(host, port)
        shown = host if host not in ("0.0.0.0", "::") else socket.gethostname()
        display.say(
            f"{counted(len(pairs), 'pair')} of videos to choose between at http://{shown}:{port}\n"
            "every choice is kept as it is made; end this with Ctrl-C to see what people have chosen so far"
        )
        display.begin("people choose", patience=math.inf)
        config = uvicorn.Config(build_study(folder, pairs, store, host), log_level="warning", access_log=False)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends well, and then raises what it was ended by
            uvicorn.Server(config).run(sockets=[listening])
        _told(folder, pairs, store.choices(), display)
    finally:
        store.close()


def tell(folder: Path, display: Display) -> None:
    """Show what people have chosen so far, which a study that is served meanwhile does not mind. Raises UserError."""
    pairs, store = _opened(folder)
    try:
        _told(folder, pairs, store.choices(), display)
    finally:
        store.close()


def _opened(folder: Path) -> tuple[list[Pair], StudyStore]:
    from framegrove.evaluation.results import read_ledger
    from framegrove.evaluation.user_study import pairs_of
    from framegrove.evaluation.user_study_store import FILE, StudyStore

    if not (folder / LEDGER).is_file():
        raise UserError(f"there is no evaluation in {folder}: give the --out of one that has made its videos")
    identity, rows = read_ledger(folder / LEDGER)
    pairs = pairs_of(rows, folder)
    return pairs, StudyStore(folder / FILE, identity)


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"nothing can be served at {host}:{port} ({error.strerror}): give another --port") from None


def _told(folder: Path, pairs: Sequence[Pair], choices: Sequence[Choice], display: Display) -> None:
    """Print a table for each question, and leave the figures, and the choices as --pairs takes them, in the folder."""
    from dataclasses import asdict

    from framegrove.evaluation.user_study import verdicts
    from framegrove.files import write_json

    if not choices:
        display.say("nobody has chosen yet")
        return
    display.begin("reading the choices")
    found = verdicts(choices)
    for each in found:
        display.console.print(_table(each))
        for doubt in _doubts(each):
            display.say(doubt)
        if each.left is not None:
            display.say(f"{each.left:.0%} of the choices that are no ties went to the video on the left")
    write_json(folder / FIGURES, {"verdicts": [_as_json(asdict(each)) for each in found]})
    written = [folder / FIGURES, *(_write_pairs(folder, each.question, pairs, choices) for each in found)]
    display.say("\n".join(map(str, written)))


def _table(found: QuestionResult) -> Any:
    from rich.table import Table

    from framegrove.verification.scoring import probability

    people = f"{found.people} people" if found.people > 1 else "1 person"
    title = (
        f"{found.question}: {counted(found.choices, 'choice')} by {people} about {counted(found.prompts, 'prompt')}; "
        f"strengths in log-odds against an average setting{' of a group' if len(found.groups) > 1 else ''} (Bradley "
        "and Terry), with 95% bootstrap intervals over people and prompts"
    )
    table = Table(title=title)
    for column in ("setting", "strength", "preferred to an average one", "won", "tied", "lost"):
        table.add_column(column, justify="left" if column == "setting" else "right", overflow="fold")
    ends = {group.settings[-1] for group in found.groups}
    for each in found.standings:
        chance, strength = probability(each.strength.mean), each.strength
        shown = f"{strength.mean:+.2f}"
        if not math.isnan(strength.low):
            shown += f" [{strength.low:+.2f}, {strength.high:+.2f}]"
        tally = (str(number) for number in (each.won, each.tied, each.lost))
        table.add_row(each.setting, shown, f"{chance:.0%}", *tally, end_section=each.setting in ends)
    return table


def _doubts(found: QuestionResult) -> Iterator[str]:
    """What the table of a question does not tell, a sentence each."""
    if len(found.groups) > 1:
        names = "; ".join(", ".join(group.settings) for group in found.groups)
        yield f"nobody has compared settings of these groups yet, so that their strengths say nothing across: {names}"
    for group in found.groups:
        lost = f"{1 - group.held:.0%}"
        if lost != "0%":
            so = (
                "and the intervals are those of the other draws"
                if _has_intervals(found, group)
                else "which is too many for intervals: ask more people about more prompts"
            )
            yield f"in {lost} of the bootstrap's draws {', '.join(group.settings)} cannot all be compared, {so}"


def _has_intervals(found: QuestionResult, group: ComparedGroup) -> bool:
    return any(not math.isnan(each.strength.low) for each in found.standings if each.setting in group.settings)


def _as_json(value: Any) -> Any:
    """As JSON values, which have no nan."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_pairs(folder: Path, question: str, pairs: Sequence[Pair], choices: Sequence[Choice]) -> Path:
    """The choices on a question as a file that --pairs takes, to hold judges against people."""
    from framegrove.files import replacing

    known = {pair.key: pair for pair in pairs}
    path = folder / f"study-{question}.csv"
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "a", "b", "choice"])
        for choice in choices:
            pair = known.get(choice.key)
            if choice.question == question and pair is not None:
                writer.writerow([pair.prompt, *pair.files, {"one": "a", "other": "b", "tie": "tie"}[choice.better]])
    return path
