"""All claims, in the order in which they are listed: cheapest first."""

from __future__ import annotations

from framegrove.errors import UserError
from jobs.claims import budgets, judge_errors, judging, kept, pyramids, renoise, trained
from jobs.claims.claim import Claim

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        *pyramids.CLAIMS,
        kept.CLAIM,
        renoise.CLAIM,
        judge_errors.CLAIM,
        *budgets.CLAIMS,
        *judging.CLAIMS,
        *trained.CLAIMS,
    )
}


def find(name: str) -> Claim:
    """The claim of this name. Raises UserError where there is none."""
    if name not in CLAIMS:
        raise UserError(f"there is no claim {name[:60]!r}: choose one of {', '.join(CLAIMS)}")
    return CLAIMS[name]
