"""What the endpoint offers, and how a request in the API's terms becomes one to the generator."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from framegrove.config.model import Native
from framegrove.config.request import parse_size
from framegrove.config.search import parse_budget
from framegrove.config.serve import ServeConfig
from framegrove.errors import UserError
from framegrove.media.extending import ClipForm
from framegrove.serving.api import (
    LARGEST_DRAWN,
    LARGEST_SEED,
    ApiError,
    ExtensionRequest,
    Model,
    PolicyOffer,
    Search,
    VerifierOffer,
    VideoRequest,
)
from framegrove.types import GenerationRequest, Sampling

# Another name for a policy, as earlier versions of the API called it.
_OTHER_NAMES = {"none": "single"}


@dataclass(frozen=True)
class ServedModel:
    """What the service offers.

    ``recipe`` says what the model's videos are like, ``check`` raises UserError for a request that the model or its
    policy cannot fulfil. ``policies`` are the search policies on offer; ``judged`` says whether one asks verifiers,
    which ``verifiers`` lists. Widths and heights are multiples of ``side`` pixels, and a video has at most
    ``most_units`` units. ``flops`` are those of one sample of what a request asks for, without a search, decoding
    included.
    """

    name: str
    recipe: Native
    check: Callable[[GenerationRequest], object]
    policies: Mapping[str, PolicyOffer]
    judged: Callable[[str], bool]
    side: int
    most_units: int
    flops: Callable[[GenerationRequest], float]
    verifiers: Mapping[str, VerifierOffer] = field(default_factory=dict)

    @property
    def native(self) -> GenerationRequest:
        """What a request that names neither size nor length asks for."""
        recipe = self.recipe
        return GenerationRequest("anything", 0, recipe.units, recipe.height, recipe.width)


@dataclass(frozen=True)
class Offer:
    """A model within the limits of an endpoint."""

    model: ServedModel
    limits: ServeConfig

    def described(self) -> Model:
        """As GET /v1/models shows it."""
        recipe, limits, native = self.model.recipe, self.limits, self.model.native
        return Model(
            id=self.model.name,
            knows=recipe.knows,
            size=f"{native.width}x{native.height}",
            fps=recipe.fps,
            seconds=recipe.frames_of(native.units) / recipe.fps,
            most_seconds=recipe.frames_of(self._most_units) / recipe.fps,
            budget=limits.budget,
            most_budget=limits.most_budget,
            most_videos=self._most_videos,
            flops=self.model.flops(native),
            policies=dict(self.model.policies),
            verifiers=dict(self.model.verifiers),
        )

    @property
    def _most_units(self) -> int:
        return min(self.limits.most_units, self.model.most_units)

    @property
    def _most_videos(self) -> int:
        return min(self.limits.most_videos, self.limits.waiting)

    def accepted(self, asked: VideoRequest, image: bytes | None) -> list[GenerationRequest]:
        """The request with all defaults filled in, for each of its videos. Raises ApiError for what is not offered."""
        most = self._most_videos
        if asked.n > most:
            raise ApiError(400, f"n is {asked.n}: a request may ask for {most} videos at most", param="n")
        first = _seed(asked.seed, asked.n)
        if first + asked.n - 1 > LARGEST_SEED:
            raise ApiError(400, f"the last of {asked.n} seeds from {first} is too large: begin lower", param="seed")
        request = self._accepted(asked, image, first)
        return [replace(request, seed=first + number) for number in range(asked.n)]

    def _accepted(self, asked: VideoRequest, image: bytes | None, seed: int) -> GenerationRequest:
        height, width = self._size(asked)
        units, frames = self._length(asked)
        request = GenerationRequest(
            prompt=asked.prompt,
            seed=seed,
            units=units,
            height=height,
            width=width,
            image=image,
            sampling=Sampling(asked.negative_prompt, asked.num_inference_steps, asked.guidance_scale),
            frames=frames,
            fps=asked.fps,
        )
        return self._searched(request, asked.search)

    def remixed(self, request: GenerationRequest, prompt: str) -> GenerationRequest:
        """The same request, seed included, for another prompt. Raises ApiError for one that the model cannot read."""
        remix = replace(request, prompt=prompt)
        self._check(remix)
        return remix

    def extended(self, earlier: GenerationRequest, asked: ExtensionRequest) -> GenerationRequest:
        """A request that goes on where an earlier one ended. Raises ApiError for what is not offered."""
        recipe, most = self.model.recipe, self._most_units
        fps = earlier.fps or recipe.fps
        frames = recipe.frames_of(earlier.units) + max(1, round(float(asked.seconds) * fps))
        units = recipe.units_of(frames)
        if units > most:
            room = (recipe.frames_of(most) - recipe.frames_of(earlier.units)) / fps
            raise ApiError(
                400,
                f"{asked.seconds} s more cannot be made: this video can become {room:g} s longer at most",
                param="seconds",
            )
        request = replace(
            earlier,
            prompt=asked.prompt,
            seed=_seed(asked.seed),
            units=units,
            image=None,
            frames=frames,
            given=earlier.units,
        )
        return self._searched(request, asked.search)

    def clip_form(self, asked: ExtensionRequest) -> ClipForm:
        """What a clip becomes before it is gone on from as asked. Raises ApiError where there is no room for any."""
        recipe, most = self.model.recipe, self._most_units
        more = recipe.units_of(1 + max(1, round(float(asked.seconds) * recipe.fps))) - 1
        if more >= most:
            room = (recipe.frames_of(most) - 1) / recipe.fps
            raise ApiError(400, f"{asked.seconds} s more cannot be made: ask for {room:g} s at most", param="seconds")
        return ClipForm(recipe.height, recipe.width, recipe.fps, most - more)

    def of_clip(self, clip: bytes, units: int) -> GenerationRequest:
        """What a video that is an uploaded clip of so many units would have been asked for as."""
        return replace(self.model.native, units=units, clip=clip)

    def price(self, request: GenerationRequest) -> float:
        """How much work a request is at most, in samples of the model's own size and length without a search."""
        sampling = Sampling(negative=request.sampling.negative)
        native = replace(self.model.native, prompt=request.prompt, sampling=sampling)  # a long prompt is no more work
        return self.flops(request) / self.model.flops(native)

    def flops(self, request: GenerationRequest) -> float:
        """The FLOPs that a request's budget allows."""
        return request.budget * self.model.flops(request)

    def _searched(self, request: GenerationRequest, search: Search) -> GenerationRequest:
        """The request, to be searched for like this. Raises ApiError for what is not offered."""
        request = replace(
            request,
            policy=self._policy(search.policy),
            budget=self._budget(search.budget),
            until=search.until,
            within=search.seconds,
            options=search.options,
            speculate=search.speculation,
            verifiers=self._verifiers(search.verifiers),
        )
        self._check(request)
        return request

    def _check(self, request: GenerationRequest) -> None:
        try:
            self.model.check(request)
        except UserError as error:
            raise ApiError(400, str(error)) from None
        price, most = self.price(request), self.limits.most_work
        if price > most:
            raise ApiError(
                400,
                f"this is {price:,.0f} times the work of a sample of {self.model.native.width}x"
                f"{self.model.native.height} pixels and {self.model.native.units} units, and at most {most:g} are "
                "allowed: lower search.budget, seconds or size",
                code="too_much_work",
            )

    def _size(self, asked: VideoRequest) -> tuple[int, int]:
        """(height, width) in pixels."""
        if (asked.width is None) != (asked.height is None):
            raise ApiError(400, "width and height belong together: give both, or size", param="width")
        recipe = self.model.recipe
        if asked.width is not None and asked.height is not None:
            if asked.size is not None and parse_size(asked.size) != (asked.height, asked.width):
                raise ApiError(400, f"size is {asked.size} and width x height is another: give one", param="size")
            height, width = asked.height, asked.width
        else:
            height, width = parse_size(asked.size) if asked.size else (recipe.height, recipe.width)
        if asked.size_policy == "exact":
            return height, width
        side = self.model.side
        return max(side, round(height / side) * side), max(side, round(width / side) * side)

    def _length(self, asked: VideoRequest) -> tuple[int, int | None]:
        """Units of a video, and how many of its frames are wanted; None: all."""
        recipe, most = self.model.recipe, self._most_units
        if asked.seconds is None and asked.num_frames is None:
            return recipe.units, None
        if asked.seconds is not None and asked.num_frames is not None:
            raise ApiError(400, "seconds and num_frames both say how long the video is: give one", param="num_frames")
        fps = asked.fps or recipe.fps
        frames = asked.num_frames or max(1, round(float(asked.seconds or 0) * fps))
        units = recipe.units_of(frames)
        if units > most:
            longest = recipe.frames_of(most)
            field = "seconds" if asked.seconds is not None else "num_frames"
            raise ApiError(
                400,
                f"a video of {frames:,} frames cannot be made: ask for at most {longest}, which last "
                f"{longest / fps:g} seconds",
                param=field,
            )
        return units, frames

    def _policy(self, asked: str) -> str:
        offered = self.model.policies
        name = asked if asked in offered else _OTHER_NAMES.get(asked, asked)
        if name not in offered:
            sentence = f"search.policy {asked[:60]!r} is unknown: choose one of {', '.join(offered)}"
            raise ApiError(400, sentence, param="search.policy")
        return name

    def _verifiers(self, asked: dict[str, float] | None) -> dict[str, float] | None:
        offered = self.model.verifiers
        if asked is None:
            return None
        for name in asked:
            if name not in offered:
                sentence = f"search.verifiers {name[:60]!r} is unknown: choose among {', '.join(offered)}"
                raise ApiError(400, sentence, param="search.verifiers")
        if not any(asked.values()):
            raise ApiError(400, "search.verifiers: one of the weights must be above 0", param="search.verifiers")
        return asked

    def _budget(self, asked: str | None) -> float:
        budget = parse_budget(asked or self.limits.budget)
        if budget > parse_budget(self.limits.most_budget):
            sentence = f"a budget of {budget:g}x is more than the {self.limits.most_budget} allowed"
            raise ApiError(400, sentence, param="search.budget")
        return budget


def offer_of(offers: Mapping[str, Offer], name: str | None) -> Offer:
    """The offer of the model of this name, of the first one for None. Raises ApiError (404) where there is none."""
    if name is None:
        return next(iter(offers.values()))
    if name not in offers:
        there = ", ".join(offers)
        raise ApiError(404, f"there is no model {name[:60]!r} here, only {there}", param="model", code="not_found")
    return offers[name]


def _seed(asked: int | None, n: int = 1) -> int:
    """The first of ``n`` seeds that was asked for; one that is drawn for -1 and None."""
    return secrets.randbelow(LARGEST_DRAWN - n) if asked is None or asked == -1 else asked
