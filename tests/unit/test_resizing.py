"""The rule by which pools grow and shrink, and how their sizes are read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framegrove.cluster.resizing import Load, Patience, change
from framegrove.config.base import ConfigError, load
from framegrove.config.pool import PoolSize
from framegrove.config.serve import ServeConfig
from framegrove.config.verifier import VerifierConfig
from framegrove.errors import UserError

PATIENCE = Patience(grow=5, rest=60, look=1)

sizes = st.tuples(st.integers(1, 5), st.integers(0, 5)).map(lambda given: PoolSize(given[0], sum(given)))
seconds = st.floats(0, 200)


@st.composite
def loads(draw: st.DrawFn, size: PoolSize) -> Load:
    """A pool of this size at any moment."""
    up = draw(st.integers(size.least, size.most))
    coming = draw(st.integers(0, size.most - up))
    idle = draw(st.lists(seconds, max_size=up))
    return Load(up, coming, draw(st.integers(0, 20)), draw(seconds), idle)


@given(st.data(), sizes, st.integers(1, 8))
def test_a_pool_stays_within_its_size_and_only_idle_actors_leave(
    data: st.DataObject, size: PoolSize, each: int
) -> None:
    load = data.draw(loads(size))
    more = change(size, load, at_a_time=each, patience=PATIENCE)
    assert size.least <= load.up + load.coming + more <= size.most
    if more > 0:
        assert load.waited >= PATIENCE.grow
        assert load.coming + more <= math.ceil(load.waiting / each), "no more than works wait"
    if more < 0:
        assert not load.waiting
        assert not load.coming
        assert -more <= sum(rested >= PATIENCE.rest for rested in load.idle)


@given(sizes, st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=30), st.integers(1, 30))
def test_a_pool_serves_everything_and_is_small_again(
    size: PoolSize, arrivals: list[tuple[int, int]], starting: int
) -> None:
    """Works that come at any second and take any time, on actors that take ``starting`` seconds to come."""
    ends, works = max((at for at, _ in arrivals), default=0), sorted(arrivals)
    free_at = [0.0] * size.least  # when each actor is done
    idle_since = [0.0] * size.least
    coming: list[float] = []
    waited = 0.0
    served = 0
    for now in range(ends + 40 * len(works) + 400):
        for _ in [at for at in coming if at <= now]:
            free_at.append(now)
            idle_since.append(now)
        coming = [at for at in coming if at > now]
        waiting = [work for work in works if work[0] <= now]
        for index, busy_until in enumerate(free_at):
            if busy_until <= now and waiting:
                work = waiting.pop(0)
                works.remove(work)
                served += 1
                free_at[index] = idle_since[index] = now + work[1]
        waited = waited + 1 if waiting else 0.0
        idle = [now - since for since in idle_since if since <= now]
        more = change(size, Load(len(free_at), len(coming), len(waiting), waited, idle), patience=PATIENCE)
        coming += [now + starting] * max(0, more)
        for _ in range(-more):
            rested = max(index for index, since in enumerate(idle_since) if now - since >= PATIENCE.rest)
            del free_at[rested], idle_since[rested]
        assert size.least <= len(free_at) + len(coming) <= size.most
    assert served == len(arrivals)
    assert len(free_at) == size.least
    assert not coming


def test_the_pool_of_a_busy_moment_does_not_grow() -> None:
    assert change(PoolSize(1, 4), Load(up=1, waiting=3, waited=4.9), patience=PATIENCE) == 0
    assert change(PoolSize(1, 4), Load(up=1, waiting=3, waited=5.0), patience=PATIENCE) == 3


@pytest.mark.parametrize(
    ("given_", "size"), [(3, PoolSize(3, 3)), ("4", PoolSize(4, 4)), ("1:4", PoolSize(1, 4)), ("2:2", PoolSize(2, 2))]
)
def test_a_size_is_a_number_or_a_range(given_: int | str, size: PoolSize) -> None:
    assert PoolSize.read(given_) == size
    config = ServeConfig.model_validate({"generators": given_})
    assert config.generators == size
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.at_a_time == size.most


@pytest.mark.parametrize("wrong", ["0", 0, "4:1", "0:4", "1:2:3", "x", 1.5, True, None, -1, "1:9999999"])
def test_other_sizes_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="give a number as 4 or a range as 2:8"):
        PoolSize.read(wrong)


def test_a_range_in_yaml_is_no_number_of_base_60() -> None:
    assert load(ServeConfig, None, ["generators=1:4"]).generators == PoolSize(1, 4)
    assert load(VerifierConfig, None, ["kind=signals", "name=signals", "actors=1:3"]).actors == PoolSize(1, 3)
    with pytest.raises(ConfigError, match="generators: give a number as 4 or a range as 2:8, not '4:1'"):
        load(ServeConfig, None, ["generators=4:1"])
    with pytest.raises(UserError, match=r"^--workers must be a number as 4 or a range as 2:8, not '8:2'$"):
        PoolSize.option("--workers", "8:2")
