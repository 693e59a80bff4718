"""When workers end to be joined by more of them."""

from __future__ import annotations

from actors.trainer import Newcomers

WORKER = {"CPU": 1.0, "framegrove_train": 0.1}
ROOM = {"CPU": 4.0, "framegrove_train": 1.0}


def test_a_machine_is_ready_when_it_has_been_there_for_long_enough() -> None:
    newcomers = Newcomers({"old"}, WORKER)
    assert newcomers.ready({"old": ROOM}, 0.0) == []
    assert newcomers.ready({"old": ROOM, "new": ROOM}, 100.0) == []
    assert newcomers.ready({"old": ROOM, "new": ROOM}, 120.0) == []
    assert newcomers.ready({"old": ROOM, "new": ROOM}, 125.0) == ["new"]


def test_a_machine_that_went_and_came_back_has_been_there_since_it_came_back() -> None:
    newcomers = Newcomers(set(), WORKER)
    newcomers.ready({"new": ROOM}, 0.0)
    newcomers.ready({}, 20.0)
    assert newcomers.ready({"new": ROOM}, 40.0) == []
    assert newcomers.ready({"new": ROOM}, 65.0) == ["new"]


def test_a_machine_without_room_for_a_worker_is_none_to_wait_for() -> None:
    newcomers = Newcomers(set(), WORKER)
    for now in (0.0, 60.0):
        assert newcomers.ready({"other role": {"CPU": 8.0}, "small": {"CPU": 0.5, "framegrove_train": 1.0}}, now) == []
