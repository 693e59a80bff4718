"""A search that dies goes on where it was, from its journal."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framegrove.config.search import SearchConfig
from framegrove.search.conductor import Conductor
from framegrove.search.journal import Journal, JournalError
from framegrove.search.policies import make_policy
from framegrove.search.protocols import PanelMember
from framegrove.search.result import SearchResult
from framegrove.search.workers import GENERATORS
from framegrove.types import Assessment, Cost, Sampled, SampleWork, Scored, ScoreWork
from tests.fakes import FREE, FakeGenerator, FakeVerifier, MemoryStore, World, run_virtual

CONFIG = SearchConfig(policy="tof", budget="4x")
IDENTITY: dict[str, Any] = {"prompt": "a red 3", "seed": 1, "search": CONFIG.model_dump(mode="json")}
DRAFT = Sampled(SampleWork(((0,), (1,)), 0, 1), Cost(20, 10**15 + 1, 1.5), ("first", "second"))
SCORE = Scored(
    ScoreWork((1,), Assessment.POTENTIAL),
    (("left", 0.1), ("right", 1 / 3)),
    Cost(1, 2, 0.25),
    mass=0.9,
    answers=(("Is it there?", 2 / 3),),
)


def search(path: Path, store: MemoryStore, world: World, *, dies_after: float | None = None) -> SearchResult | None:
    """A search with a journal; ``dies_after`` so many seconds it is gone without a word."""

    async def main() -> SearchResult | None:
        policy, _ = make_policy(CONFIG, 4, 3, FREE)
        generators = {name: FakeGenerator(name, world) for name in ("g0", "g1")}
        panel = {"verifier": PanelMember({"v": FakeVerifier("v", world)})}
        with Journal(path, IDENTITY, store) as journal:
            conductor = Conductor(policy, generators, panel, CONFIG, journal=journal)
            try:
                return await asyncio.wait_for(conductor.run(), dies_after)
            except TimeoutError:
                return None

    return run_virtual(main())


@pytest.mark.parametrize("dies_after", [0.5, 9.0, 15.0, 30.0, 45.0])
def test_a_search_resumes_where_it_was(tmp_path: Path, dies_after: float) -> None:
    undisturbed = search(tmp_path / "whole.jsonl", MemoryStore(), World())
    assert undisturbed is not None
    assert undisturbed.seconds > 45
    path, store = tmp_path / "journal.jsonl", MemoryStore()
    assert search(path, store, World(), dies_after=dies_after) is None
    with path.open("ab") as file:
        file.write(b'{"scored": [0], "asse')  # the crash tore the last line
    resumed = search(path, store, World())
    assert resumed is not None
    assert resumed.units == undisturbed.units
    assert resumed.certain == undisturbed.certain
    assert resumed.sampling.certain == undisturbed.sampling.certain
    assert resumed.restored + len([s for s in resumed.spans if s.work in resumed.certain]) >= len(resumed.certain)
    if dies_after > 9:
        assert resumed.restored > 0
        assert resumed.seconds < undisturbed.seconds


def test_a_finished_search_is_read_back_without_any_work(tmp_path: Path) -> None:
    store, world = MemoryStore(), World()
    first = search(tmp_path / "journal.jsonl", store, world)
    scored = world.scored
    second = search(tmp_path / "journal.jsonl", store, world)
    assert first is not None
    assert second is not None
    assert second.units == first.units
    assert second.spans == ()
    assert world.scored == scored
    assert [node.scored for node in second.nodes] == [node.scored for node in first.nodes]
    (final,) = second.nodes[[node.path for node in second.nodes].index(second.winner)].scored
    assert (final.work, len(final.answers)) == (ScoreWork(second.winner, Assessment.FINAL), 2)
    assert (second.sampling, second.scoring) == (first.sampling, first.scoring)  # waste is remembered too


def test_latents_that_are_gone_are_sampled_again(tmp_path: Path) -> None:
    store = MemoryStore()
    first = search(tmp_path / "journal.jsonl", store, World())
    assert first is not None
    lost = "-".join(map(str, first.winner)) + ".stage2"
    del store.latents[lost]
    second = search(tmp_path / "journal.jsonl", store, World())
    assert second is not None
    assert second.units == first.units
    assert [span.work.paths for span in second.spans if isinstance(span.work, SampleWork)] != []


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        with Journal(tmp_path / "j", IDENTITY, store) as journal:
            await journal.record(DRAFT)
            await journal.record(SCORE)
            await journal.record_waste(GENERATORS, Cost(3, 4, 0.5))
        assert store.latents == {"0.stage1": "first", "1.stage1": "second"}
        with Journal(tmp_path / "j", IDENTITY, store) as journal:
            restored = await journal.restore()
        assert restored.results == ((DRAFT, ("first", "second")), (SCORE, ()))
        assert restored.results[1][0].cost == SCORE.cost
        assert restored.wasted == ((GENERATORS, Cost(3, 4, 0.5)),)

    asyncio.run(main())


def test_latents_are_kept_before_the_line_that_promises_them(tmp_path: Path) -> None:
    class Full(MemoryStore):
        async def save(self, name: str, handle: Any) -> None:
            raise OSError("disk full")

    async def main() -> None:
        with Journal(tmp_path / "j", IDENTITY, Full()) as journal:
            with pytest.raises(OSError, match="disk full"):
                await journal.record(DRAFT)
            assert len((tmp_path / "j").read_text().splitlines()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("keep", range(1, 80, 7))
def test_any_torn_end_is_tolerated(tmp_path: Path, keep: int) -> None:
    async def main() -> None:
        path, store = tmp_path / "j", MemoryStore()
        with Journal(path, IDENTITY, store) as journal:
            await journal.record(DRAFT)
            before = path.stat().st_size
            await journal.record(SCORE)
        os.truncate(path, before + keep)
        with Journal(path, IDENTITY, store) as journal:
            assert [result for result, _ in (await journal.restore()).results] == [DRAFT]
            await journal.record(SCORE)
        with Journal(path, IDENTITY, store) as journal:
            assert [result for result, _ in (await journal.restore()).results] == [DRAFT, SCORE]

    asyncio.run(main())


def test_a_write_that_fails_is_told_to_all_it_was_for_and_leaves_no_half_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write, full = tmp_path / "journal.jsonl", os.write, threading.Event()

    def until_full(descriptor: int, data: bytes) -> int:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        full.set()
        return write(descriptor, data[:40])

    async def main() -> None:
        with Journal(path, IDENTITY, MemoryStore()) as journal:
            await journal.record(verdict(0))
            with monkeypatch.context() as patched:
                patched.setattr(os, "write", until_full)
                said = await asyncio.gather(*(journal.record(verdict(n)) for n in (1, 2, 3)), return_exceptions=True)
            assert all(isinstance(each, OSError) for each in said)
            await asyncio.gather(*(journal.record(verdict(n)) for n in (4, 5)))
        with Journal(path, IDENTITY, MemoryStore()) as journal:
            restored = await journal.restore()
        assert [result.work.path for result, _ in restored.results if isinstance(result, Scored)] == [(0,), (4,), (5,)]

    asyncio.run(main())


def verdict(branch: int) -> Scored:
    return replace(SCORE, work=replace(SCORE.work, path=(branch,)))


def test_a_torn_first_line_is_a_fresh_journal(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"journal": 5, "iden')
    with Journal(tmp_path / "j", IDENTITY, MemoryStore()):
        pass
    assert json.loads((tmp_path / "j").read_text()) == {"journal": 5, "identity": IDENTITY}


def test_another_searchs_journal_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY, MemoryStore()):
        pass
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(
        JournalError, match=r"the journal of another search, its seed is 1 and here it is 2: choose"
    ) as caught:
        Journal(tmp_path / "j", IDENTITY | {"seed": 2}, MemoryStore())
    assert "\n" not in str(caught.value)
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[]\n{"scored": 1}\n', "is not a search journal of version 5"),
        (b'{"journal": 99, "identity": {}}\n', "is not a search journal of version 5"),
        (b"what\nis\nthis\n", "line 1 is damaged: remove the file"),
    ],
)
def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError, match=says):
        Journal(tmp_path / "j", IDENTITY, MemoryStore())
    assert (tmp_path / "j").read_bytes() == content


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY, MemoryStore()):
        pass
    with (tmp_path / "j").open("a") as file:
        file.write('{"sampled": "nonsense"}\n')
    with (
        Journal(tmp_path / "j", IDENTITY, MemoryStore()) as journal,
        pytest.raises(JournalError, match="line 2 is no entry"),
    ):
        asyncio.run(journal.restore())
