"""What jobs.generate is asked for, and the search that it becomes once all of it has been checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from framegrove.config.base import Config, load
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import PanelConfig, load_panel
from framegrove.errors import UserError
from framegrove.search import policies
from framegrove.search.policies import PolicyEntry
from framegrove.types import GenerationRequest, Sampling
from jobs.console import Display, any_source

if TYPE_CHECKING:
    from actors.model_files import Card
    from framegrove.config.generator import AnySource

log = logging.getLogger(__name__)


class Asked(Config):
    """What a search was asked for, as it was given: what --resume needs to know."""

    prompt: str
    seed: int
    policy: str
    budget: str | None
    until: float | None
    units: int | None
    size: str | None
    image: str | None
    extend: str | None = None
    model: str | None
    variant: str | None
    dtype: str
    allow_pickle: bool
    verifier: str | None
    set: tuple[str, ...]
    guidance: float | None = None
    steps: int | None = None
    panel: tuple[str, ...] | None = None

    @property
    def sampling(self) -> Sampling:
        """How the model is sampled where it is not as its recipe says."""
        return Sampling(steps=self.steps, guidance=self.guidance)


@dataclass(frozen=True)
class CheckedSearch:
    """A search that can be made: of which model, judged by whom, how, and for what."""

    source: AnySource
    panel: PanelConfig
    search: SearchConfig
    request: GenerationRequest


def checked(asked: Asked, display: Display) -> CheckedSearch:
    """The search that was asked for. Raises UserError for what cannot be done, before anything is started."""
    if asked.image is not None and asked.extend is not None:
        raise UserError("--image and --extend both say how the video begins: give one of them")
    from framegrove.config.request import check_prompt

    search = load(SearchConfig, None, asked.set)
    entry = policies.find(asked.policy)
    policies.check_options(search, [entry])
    until = asked.until if asked.until is not None else search.until
    policies.check_until(entry, until)
    panel = load_panel(asked.verifier)
    _check_panel(asked, panel)
    wanted = search.model_copy(update={"policy": asked.policy, "until": until})
    policies.check_comparing(wanted, [each.name for each in panel.verifiers if each.anchors])
    if entry.judged:
        panel.check_files()
    text, budget = check_prompt(asked.prompt), multiple_of(entry, asked.budget)
    display.begin("reading the model")
    from actors.adapted import card_of

    source = any_source(asked.model, asked.variant, asked.dtype, asked.allow_pickle)
    card = card_of(source)
    request = replace(
        bare_request(asked, card),
        prompt=text,
        policy=entry.name if entry.name in policies.summaries() else asked.policy,
        budget=budget,
        image=_picture(Path(asked.image)) if asked.image else None,
        until=asked.until,
        verifiers=dict.fromkeys(asked.panel, 1.0) if asked.panel else None,
    )
    if asked.extend is not None:
        request = _extending(request, Path(asked.extend), card)
    card.check(request)
    advice = card.native.outside(text)
    if advice is not None:
        log.warning(advice)
    return CheckedSearch(source, panel, search, request)


def bare_request(asked: Asked, card: Card) -> GenerationRequest:
    """A video of the length and size that were asked for, or else of the model's own, and sampled as asked."""
    from framegrove.config.request import parse_size

    native = card.native
    height, width = parse_size(asked.size) if asked.size is not None else (native.height, native.width)
    units = asked.units if asked.units is not None else native.units
    return GenerationRequest(asked.prompt, asked.seed, units, height, width, sampling=asked.sampling)


def _check_panel(asked: Asked, panel: PanelConfig) -> None:
    """Raise UserError for a verifier that is to judge and is not there."""
    names = [each.name for each in panel.verifiers]
    for name in asked.panel or ():
        if name not in names:
            raise UserError(f"there is no verifier {name[:60]!r} to judge (panel): choose among {', '.join(names)}")


def multiple_of(entry: PolicyEntry, budget: str | None) -> float:
    """The budget as a number. Raises UserError where there is nothing to spend it on."""
    from framegrove.config.search import parse_budget

    if entry.judged:
        return parse_budget(budget if budget is not None else "4x")
    if budget is not None and parse_budget(budget) != 1:
        raise UserError(
            f"a budget of {budget} buys nothing with --policy {entry.name}, which takes the first sample as it comes: "
            "leave --budget out, or choose another policy"
        )
    return 1.0


def _extending(request: GenerationRequest, path: Path, card: Card) -> GenerationRequest:
    """The request with a clip before all of its units."""
    from framegrove.config.request import FRAMES_PER_UNIT
    from framegrove.media.extending import ClipForm, frames_to_extend
    from framegrove.media.writing import encode_lossless

    room = card.most_units - request.units
    if room < 1:
        raise UserError(f"--units is {request.units}, which leaves no room for a clip before them: lower it")
    fps = card.native.fps
    frames = frames_to_extend(path, ClipForm(request.height, request.width, fps, room))
    given = 1 + (len(frames) - 1) // FRAMES_PER_UNIT
    return replace(request, units=given + request.units, given=given, clip=encode_lossless(frames, fps))


def _picture(path: Path) -> bytes:
    from framegrove.media.pictures import check_picture

    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read: {error.strerror}") from None
    check_picture(encoded, str(path))
    return encoded
