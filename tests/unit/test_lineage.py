"""A path names a branch and where its noise comes from, one way and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framegrove.lineage import FRESH, Mutation, branch_name, mutation_of, sibling

STRENGTHS = st.tuples(st.integers(0, 99), st.integers(0, 99)).filter(any)
MUTATIONS = st.builds(
    lambda parent, number, strengths: Mutation(parent, number, *strengths),
    st.integers(0, 10**40),
    st.integers(0, 999),
    STRENGTHS,
)


@given(MUTATIONS)
def test_what_an_index_says_is_read_back(mutation: Mutation) -> None:
    assert mutation.index >= FRESH
    assert mutation_of(mutation.index) == mutation
    assert mutation.parent < mutation.index  # so a lineage ends at a fresh child


@given(MUTATIONS, MUTATIONS)
def test_different_mutations_have_different_indices(one: Mutation, other: Mutation) -> None:
    assert (one == other) == (one.index == other.index)


@given(st.integers(0, FRESH - 1))
def test_small_indices_are_fresh_children(index: int) -> None:
    assert mutation_of(index) is None
    assert branch_name((index, 3)) == f"{index}.3"


def test_the_examples_of_the_docstring() -> None:
    first = Mutation(3, 7, 60, 30)
    assert first.index == 46030007
    second = Mutation(first.index, 2, 60, 30)
    assert second.index == 460300086030002
    assert branch_name((first.index,)) == "3~7(60/30)"
    assert branch_name((2, second.index)) == "2.3~7(60/30)~2(60/30)"
    assert sibling((2, second.index), second) == (2, first.index)


@pytest.mark.parametrize(
    "wrong", [(-1, 0, 60, 60), (0, 1000, 60, 60), (0, -1, 60, 60), (0, 0, 100, 0), (0, 0, 0, -1), (0, 0, 0, 0)]
)
def test_what_cannot_be_is_refused(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"sibling|hundredths"):
        Mutation(*wrong)
