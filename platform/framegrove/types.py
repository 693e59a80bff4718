"""The nouns every floor speaks: frozen values, no torch, no ray.

A *branch* is a prefix of a video's units and is named by its path, a tuple of child indices: ``(2,)`` is the third
root, ``(2, 0)`` its first child. Everything that travels between the conductor, generator actors and verifier actors
is one of the dataclasses below.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

Path = tuple[int, ...]

DEFAULT_POLICY = "dfs"  # the best one measured, see README.md


def depth_of(path: Path) -> int:
    """Number of units in the branch, minus one."""
    return len(path) - 1


def prefixes(path: Path) -> tuple[Path, ...]:
    """The branches that a branch consists of, first unit first; the last is the branch itself.

    >>> prefixes((2, 0))
    ((2,), (2, 0))
    """
    return tuple(path[:length] for length in range(1, len(path) + 1))


class Assessment(enum.StrEnum):
    """What a verifier is asked about a branch (Video-T1, section 3.3, stages a to c)."""

    POTENTIAL = "potential"  # a preview of a unit, sampled at the coarse stages only: is it worth refining?
    IMAGE = "image"  # the finished unit 0 against the static-scene prompt
    MOTION = "motion"  # a middle unit: motion and stability against the motion prompt
    FINAL = "final"  # the whole video against the whole prompt


@dataclass(frozen=True)
class Cost:
    """What some work took. ``nfe`` counts transformer evaluations, ``flops`` comes from exact token counts.

    ``decoding``, the FLOPs of turning latents into frames, is no part of ``flops``.
    """

    nfe: int = 0
    flops: int = 0
    seconds: float = 0.0
    decoding: int = 0

    @property
    def all_flops(self) -> int:
        """FLOPs, decoding included."""
        return self.flops + self.decoding

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.nfe + other.nfe,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.decoding + other.decoding,
        )


@dataclass(frozen=True)
class SampleWork:
    """Denoise the newest unit of some branches in step, from ``first_stage`` to ``last_stage`` (both inclusive).

    All paths have the same length and, beyond depth 0, the same parent. Which branches stand in one work is the
    policy's decision and never depends on timing, so the floating-point result does not either.
    """

    paths: tuple[Path, ...]
    first_stage: int
    last_stage: int

    @property
    def depth(self) -> int:
        return depth_of(self.paths[0])


@dataclass(frozen=True)
class ScoreWork:
    """Ask one verifier of the panel about one branch.

    A verifier that compares is asked how it stands ``against`` other branches of its cohort, as long as itself.
    """

    path: Path
    assessment: Assessment
    verifier: str = "verifier"
    against: tuple[Path, ...] = ()

    @property
    def shown(self) -> tuple[Path, ...]:
        """The newest units of all branches that the verifier is shown: those of the branch, then those of each other.

        >>> ScoreWork((1, 0), Assessment.FINAL, against=((2, 0),)).shown
        ((1,), (1, 0), (2,), (2, 0))
        """
        return tuple(prefix for branch in (self.path, *self.against) for prefix in prefixes(branch))


def paths_of(work: SampleWork | ScoreWork) -> tuple[Path, ...]:
    """The branches that a work samples, or the one that it scores."""
    return work.paths if isinstance(work, SampleWork) else (work.path,)


@dataclass(frozen=True)
class Sampled:
    """A sample work is done. ``handles`` are opaque references, one per path, to what was made."""

    work: SampleWork
    cost: Cost
    handles: tuple[Any, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Scored:
    """A score work is done: the verifier's scores by aspect, each in [0, 1], higher is better.

    ``mass`` is the least probability that the verifier put on yes and no together, over the questions it was asked;
    None where no question was asked. ``answers`` are the questions, in the order asked, each with its P(yes).
    """

    work: ScoreWork
    scores: tuple[tuple[str, float], ...]
    cost: Cost = Cost()
    mass: float | None = None
    answers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How a request wants its model sampled, where it is not as the model's recipe says (None).

    ``steps`` are taken at every stage of every unit, ``guidance`` is the scale of all units.
    """

    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What differs from the recipe, as JSON values."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class GenerationRequest:
    """A video that somebody wants: ``units`` of it, ``height`` x ``width`` pixels, searched for by ``policy``.

    ``budget`` counts multiples of the FLOPs of one unsearched sample with its decoding. A policy that can stop
    does so at a video that is right with probability ``until``, None: as it likes best. Shortly before ``within``
    seconds are up, the most promising branch is finished. ``image`` is an encoded first frame (PNG or JPEG).

    The first ``given`` units are there already: ``start`` has them, the file latents.safetensors of an earlier video,
    or ``clip``, as frames of this size in a lossless video (media.writing).

    ``verifiers`` are those of the panel that judge, each with how many times its own weight it counts; None: all, as
    they count by themselves.

    The file has the first ``frames`` of it (None: all), ``fps`` a second (None: the model's). ``options`` are those of
    the policy, ``speculate`` says how much is done ahead (None: as the endpoint or the command line says).
    """

    prompt: str
    seed: int
    units: int
    height: int
    width: int
    policy: str = DEFAULT_POLICY
    budget: float = 4.0
    image: bytes | None = None
    until: float | None = None
    within: float | None = None
    sampling: Sampling = Sampling()
    frames: int | None = None
    fps: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    speculate: str | None = None
    given: int = 0
    start: bytes | None = None
    clip: bytes | None = None
    verifiers: dict[str, float] | None = None


@dataclass(frozen=True)
class Progress:
    """How far a generation is: ``done`` in [0, 1] is the finished share of its certain work and never falls."""

    done: float
    note: str = ""


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation: an mp4 file's bytes, what report.json says about it, and other files by name."""

    video: bytes
    report: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
