"""Decoder states within a fixed memory."""

from __future__ import annotations

from actors.clients import KeptStates, UnitRef


def unit() -> UnitRef:
    return UnitRef(2, "latent", "frames", "state")


def test_states_after_short_videos_go_first_then_new_ones() -> None:
    states, units = KeptStates(25), [unit() for _ in range(5)]
    for each, length in zip(units, (1, 3, 3, 3, 2), strict=True):
        states.add(each, length, 10)
    assert [each.state for each in units] == [None, "state", "state", None, None]
    assert all(each.latent == "latent" for each in units)


def test_what_was_released_takes_no_room() -> None:
    states, first, second = KeptStates(25), unit(), unit()
    states.add(first, 5, 10)
    states.add(second, 5, 10)
    first.let_go()
    states.add(third := unit(), 1, 10)
    assert (second.state, third.state) == ("state", "state")
    del second
    states.add(fourth := unit(), 1, 10)
    assert (third.state, fourth.state) == ("state", "state")


def test_room_is_not_lost_however_many_come_and_go() -> None:
    states = KeptStates(1000)
    for _ in range(500):
        litter = [unit() for _ in range(7)]
        for each in litter:
            states.add(each, 2, 10)
        for each in litter[::2]:
            each.let_go()
    del litter, each
    fresh = [unit() for _ in range(60)]
    for each in fresh:
        states.add(each, 2, 10)
    assert all(each.state == "state" for each in fresh)


def test_one_that_is_larger_than_everything_is_not_kept() -> None:
    states = KeptStates(5)
    states.add(large := unit(), 1, 10)
    assert large.state is None
