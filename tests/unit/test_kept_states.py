"""Decoder states within a fixed memory."""

from __future__ import annotations

from actors.clients import KeptStates, UnitRef


def unit(given: bool = False) -> UnitRef:
    return UnitRef(2, "latent", "frames", "state", given=given)


def test_the_oldest_states_go_first_and_their_units_stay() -> None:
    states, units = KeptStates(25), [unit() for _ in range(4)]
    for each in units:
        states.add(each, 10)
    assert [each.state for each in units] == [None, None, "state", "state"]
    assert all(each.latent == "latent" for each in units)


def test_what_was_released_takes_no_room() -> None:
    states, first, second = KeptStates(25), unit(), unit()
    states.add(first, 10)
    states.add(second, 10)
    first.let_go()
    states.add(third := unit(), 10)
    assert (second.state, third.state) == ("state", "state")
    del second
    states.add(fourth := unit(), 10)
    assert (third.state, fourth.state) == ("state", "state")


def test_one_that_is_larger_than_everything_is_not_kept() -> None:
    states = KeptStates(5)
    states.add(large := unit(), 10)
    assert large.state is None
