"""The verifier as searches use it: a clip's units come one by one, straight from where they were made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actors.verifier import Verifier
from framegrove.types import Scored, ScoreWork
from framegrove.verification.rewriting import StagedPrompt


class ClipVerifier(Verifier):
    """Made an actor by ``ray.remote``."""

    async def score_units(self, work: ScoreWork, prompt: StagedPrompt, *units: npt.NDArray[np.uint8]) -> Scored:
        """``score`` of the clip that these units, uint8 (T, H, W, 3), make up."""
        return await self.score(work, prompt, np.concatenate(units))
