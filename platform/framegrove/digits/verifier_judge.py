"""The small verifier as a judge of siblings, in this process: what a search would be told of them, without an engine.

The questions, the views and the number of frames shown are those that the verifier's folder names, and so are the
scores and their calibration; only the engine is transformers' (the two agree to 4e-7 in float32).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from framegrove.config.engine import shipped_folder
from framegrove.config.request import unit_lengths
from framegrove.config.verifier import Calibration, own_settings
from framegrove.digits import world
from framegrove.digits.siblings import Group
from framegrove.digits.teacher import Pixels
from framegrove.digits.verifier_model import Packer, answer_logits, read_cells, with_fast_norms
from framegrove.errors import UserError
from framegrove.search.fusion import product
from framegrove.types import Assessment
from framegrove.verification.calibration import fitted
from framegrove.verification.questions import Question, load_question_set
from framegrove.verification.scoring import Answer, averaged, on_grid, scores_of
from framegrove.verification.views import Shown, grouped

_BATCH = 24  # selections of frames that are looked at together

Scores = Mapping[str, float]


class Judge:
    """A verifier of the digits world and what it is asked."""

    def __init__(self, folder: Path | None = None) -> None:
        """Load the verifier in ``folder``; None is the shipped one. Raises UserError where it is none of this kind."""
        folder = folder or shipped_folder()
        settings = own_settings(str(folder))
        if settings is None or settings.questions is None or not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} is no verifier of the digits world: give a folder that jobs.train_verifier made")
        self.calibration: dict[Assessment, Calibration] = settings.calibration
        self._most = settings.engine.max_frames
        self._questions = load_question_set(settings.questions)
        model = Idefics3ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        vision: Any = model.config.vision_config
        side = vision.image_size // vision.patch_size // model.config.scale_factor
        self._model = with_fast_norms(model).eval()
        self._packer = Packer(PreTrainedTokenizerFast.from_pretrained(folder), side**2)

    def scores(
        self,
        groups: Sequence[Group],
        assessment: Callable[[Group], Assessment] | None = None,
        on_groups: Callable[[int], None] = lambda _: None,
    ) -> list[list[Scores]]:
        """The scores of every child of every group, at what a search would ask at its depth, or at ``assessment``.

        ``on_groups`` is told how many groups have been looked at.
        """
        looks: dict[tuple[int, int], list[_Look]] = defaultdict(list)
        answers: dict[tuple[int, int], list[list[Answer]]] = {}
        asked: list[tuple[Assessment, tuple[Question, ...]]] = []
        for at, group in enumerate(groups):
            kind = (assessment or assessment_of)(group)
            questions = self._questions.questions(kind, world.caption(group.objects))
            asked.append((kind, questions))
            for child in range(len(group.children)):
                answers[at, child] = [[] for _ in questions]
                lengths = unit_lengths(group.frame_count)
                for shown, places in grouped([q.view for q in questions], lengths, self._most).items():
                    look = _Look((at, child), shown, places, [questions[place].text for place in places])
                    waiting = looks[len(shown), len(places)]
                    waiting.append(look)
                    if len(waiting) == _BATCH:
                        self._answer(groups, waiting, answers)
                        waiting.clear()
            on_groups(at + 1)
        for waiting in looks.values():
            self._answer(groups, waiting, answers)
        return [
            [
                dict(scores_of(kind, questions, [on_grid(averaged(each).odds) for each in answers[at, child]]))
                for child in range(len(groups[at].children))
            ]
            for at, (kind, questions) in enumerate(asked)
        ]

    def probability(self, assessment: Assessment, scores: Scores) -> float:
        """Of a branch being right, calibrated where the verifier is; otherwise the product of its scores."""
        calibration = self.calibration.get(assessment)
        return math.exp(calibration.log_p(scores) if calibration else product(assessment, tuple(scores.items())))

    @torch.inference_mode()
    def _answer(
        self, groups: Sequence[Group], looks: Sequence[_Look], answers: dict[tuple[int, int], list[list[Answer]]]
    ) -> None:
        if not looks:
            return
        frames: list[Pixels] = [groups[look.child[0]].shown(look.child[1], look.shown) for look in looks]
        texts = [look.texts for look in looks]
        packed = self._packer.pack(len(looks[0].shown), texts, [[False] * len(row) for row in texts])
        pictures_N3HW = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2) / 255.0
        cells = read_cells(self._model, pictures_N3HW)
        logits, *_ = answer_logits(self._model, cells.reshape(len(looks), -1, cells.shape[-1]), packed)
        chances = logits.log_softmax(-1)
        yes, no = chances[..., self._packer.yes], chances[..., self._packer.no]
        odds, masses = (yes - no).tolist(), (yes.exp() + no.exp()).tolist()
        for look, row, mass in zip(looks, odds, masses, strict=True):
            for place, odd, share in zip(look.places, row, mass, strict=True):
                answers[look.child][place].append(Answer(odd, share))


@dataclass(frozen=True)
class _Look:
    """A selection of frames of one child, and what is asked about it."""

    child: tuple[int, int]  # group, number
    shown: Shown
    places: Sequence[int]  # of the questions among all that are asked about the child
    texts: list[str]


def assessment_of(group: Group) -> Assessment:
    """What a search asks about a child at this depth: unit 0 is a picture, later ones move."""
    return Assessment.IMAGE if group.depth == 0 else Assessment.MOTION


def calibrated(judge: Judge, groups: Sequence[Group]) -> dict[Assessment, Calibration]:
    """A verifier's calibrations, fitted to groups whose readings are the teacher's: of a first unit, of a later one,

    and of a whole video, of any length: all of its units must be right. A unit is judged as what follows a right
    parent, so that children of wrong ones count for whole videos alone.
    """
    first = [group for group in groups if group.depth == 0]
    later = [group for group in groups if group.depth > 0]
    pools = {
        Assessment.IMAGE: first,
        Assessment.MOTION: [group for group in later if group.parent_right],
        Assessment.FINAL: later,
    }
    return {assessment: _fitted(judge, assessment, pool) for assessment, pool in pools.items() if pool}


def _fitted(judge: Judge, assessment: Assessment, groups: Sequence[Group]) -> Calibration:
    scores = [each for of_children in judge.scores(groups, lambda _: assessment) for each in of_children]
    return fitted(scores, [_share_right(group, reading.right) for group in groups for reading in group.readings])


def _share_right(group: Group, right: bool | None) -> float:
    """1 for a branch that is right, 0 for one that is not, one half where the teacher cannot tell."""
    verdicts = {right, *(reading.right for reading in group.lineage)}
    if False in verdicts:
        return 0.0
    return 0.5 if None in verdicts else 1.0
