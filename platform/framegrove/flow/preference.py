"""Objectives that learn from pairs: two siblings with one history, of which a panel of verifiers found one better.

All compare with a *reference*: the model at the beginning of the run, which sampled the pairs. Both siblings of a pair
are noised alike, at one stage and timestep, so that what differs between them is what was judged. Errors e are mean
squared errors of the velocity (PFM eq. 11): a pair weighs the same at every stage. The third way to learn from
searches, imitating their winners, is the flow matching loss itself on clips that searches made
(objective.sample_losses).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from framegrove.flow.objective import sample_losses


def prefer(own_N: Tensor, own_reference_N: Tensor, rival_N: Tensor, rival_reference_N: Tensor, beta: float) -> Tensor:
    """DPO for flow matching, (N,): the better sibling should become more likely, compared with the worse one.

        L = -2 / beta log sigmoid(-beta / 2 ((e(own) - e_ref(own)) - (e(rival) - e_ref(rival))))

    The arguments are errors of N pairs, under the model and under the reference. ``beta`` holds the model to the
    reference: the larger, the smaller the differences that satisfy the loss (Wallace et al. 2023, "Diffusion Model
    Alignment Using Direct Preference Optimization", arXiv 2311.12908, eq. 14; Liu et al. 2025, "Improving Video
    Generation with Human Feedback", arXiv 2501.13918, for flows, with beta alike at all timesteps).

    Theirs is not divided by beta / 2, and so weighs some hundreds of times as much as the flow matching loss of clips
    in the same batch. Divided, a pair's gradient begins as half of that of the two errors themselves, and clips keep
    the model from raising both siblings' errors, as long as one rises faster than the other.
    """
    gained = (own_N - own_reference_N) - (rival_N - rival_reference_N)
    return -2 / beta * functional.logsigmoid(-beta / 2 * gained)


def contrast(
    predictions: Sequence[Tensor],
    references: Sequence[Tensor],
    targets: Sequence[Tensor],
    chances_N: Tensor,
    beta: float,
) -> Tensor:
    """Negative-aware fine-tuning, (N,): towards what is right and away from what is wrong, from one model.

        v+ = (1 - beta) v_ref + beta v,    v- = (1 + beta) v_ref - beta v
        L = r |v+ - u|^2 + (1 - r) |v- - u|^2

    for N samples with velocities u, of which r = ``chances_N`` says how probably they are right (Zheng et al. 2025,
    "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", arXiv 2509.16117, eq. 5). The smaller ``beta``,
    the further the model may go from the reference for the same loss.
    """
    towards = [torch.lerp(ref, v, beta) for v, ref in zip(predictions, references, strict=True)]
    away = [torch.lerp(ref, v, -beta) for v, ref in zip(predictions, references, strict=True)]
    return chances_N * sample_losses(towards, targets) + (1 - chances_N) * sample_losses(away, targets)
