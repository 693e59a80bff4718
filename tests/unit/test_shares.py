"""Who gets how much of which GPU."""

from __future__ import annotations

import pytest

from framegrove.cluster.shares import Shares, gpu_shares

TRAIN = {"CPU": 96.0, "GPU": 8.0, "framegrove_train": 1.0}
GENERATE = {"CPU": 96.0, "GPU": 8.0, "framegrove_generate": 1.0}
VERIFY = {"CPU": 96.0, "GPU": 8.0, "framegrove_verify": 1.0}
HEAD = {"CPU": 0.0}


def cards(count: int, **more: float) -> dict[str, float]:
    return {"CPU": 16.0, "GPU": float(count), **more}


@pytest.mark.parametrize(
    ("nodes", "generators", "split", "generator", "verifier"),
    [
        ([{"CPU": 8.0}], 2, 1, 0, 0),
        ([], 2, 1, 0, 0),
        # One machine for everybody.
        ([cards(1)], 1, 1, 1 / 2, 1 / 2),
        ([cards(1)], 2, 1, 1 / 3, 1 / 3),
        ([cards(2)], 1, 1, 1, 1),
        ([cards(2)], 2, 1, 1 / 2, 1),
        ([cards(3)], 2, 1, 1, 1),
        ([cards(8)], 7, 1, 1, 1),
        ([cards(8)], 8, 1, 1 / 2, 1),
        ([cards(8)], 15, 1, 1 / 3, 1),
        ([cards(1), cards(1)], 1, 1, 1, 1),
        # A verifier split over several cards.
        ([cards(4)], 2, 2, 1, 2),
        ([cards(4)], 3, 2, 1 / 2, 2),
        ([cards(2)], 1, 2, 1, 2),  # no room: require says so
        ([cards(1)], 1, 2, 1, 2),
        # Machines by role: the training group's are nobody else's.
        ([HEAD, TRAIN, GENERATE, VERIFY], 8, 1, 1, 1),
        ([HEAD, TRAIN, GENERATE, VERIFY], 8, 4, 1, 4),
        ([HEAD, TRAIN, GENERATE, VERIFY], 9, 1, 1 / 2, 1),
        ([HEAD, TRAIN, cards(1, framegrove_generate=1, framegrove_verify=1)], 1, 1, 1 / 2, 1 / 2),
        ([HEAD, cards(1, framegrove_generate=1, framegrove_verify=1), VERIFY], 1, 1, 1, 1),
        ([HEAD, {"CPU": 8.0, "framegrove_generate": 1.0}, VERIFY], 2, 1, 0, 1),
        ([HEAD, {"CPU": 8.0, "framegrove_verify": 1.0}, GENERATE], 9, 1, 1 / 2, 0),
    ],
)
def test_whole_cards_where_there_are_enough(
    nodes: list[dict[str, float]], generators: int, split: int, generator: float, verifier: float
) -> None:
    shares = gpu_shares(nodes, generators, splits=[split])
    assert shares.generator == pytest.approx(generator)
    assert shares.verifier(split) == pytest.approx(verifier)


def test_a_cluster_that_grows_gives_whole_cards() -> None:
    nodes = [HEAD, TRAIN, GENERATE, VERIFY]
    assert gpu_shares(nodes, 30, grows=True) == Shares(1, 1)
    assert gpu_shares([cards(1)], 1, splits=[2], grows=True).verifier(2) == 2
    assert gpu_shares([{"CPU": 8.0}], 3, grows=True) == Shares(0, 0)


def test_several_verifiers() -> None:
    """Two that take a GPU each, one that is split over two, and none that takes any."""
    assert gpu_shares([cards(4)], 2, splits=[1, 1]) == Shares(1, 1)
    assert gpu_shares([cards(4)], 2, splits=[1, 2]) == Shares(1 / 2, 1)
    assert gpu_shares([cards(1)], 2, splits=[1, 1]) == Shares(1 / 4, 1 / 4)
    assert gpu_shares([cards(2)], 2, splits=[]) == Shares(1, 1)
    assert gpu_shares([cards(2)], 1, splits=[1, 1]) == Shares(1 / 2, 1 / 2)
