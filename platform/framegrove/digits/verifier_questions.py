"""Questions about drawn scenes with their true answers, many of them hard: near misses of what the scene shows.

A verifier trained on easy negatives reads a bag of attributes: it says yes to "a red 3" when there are a red 2 and a
blue 3. Nearly half of the negatives here therefore borrow an attribute from the other object, change a single one, or
name what is true for a part of the clip only. Accuracy is reported for every ``kind`` of question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from framegrove.digits import questions as ask
from framegrove.digits.questions import Aspect, static_scene
from framegrove.digits.verifier_scenes import Drawn, Quality, Scene, SceneFault
from framegrove.digits.world import COLOURS, DIGITS, MOTIONS, DigitObject, caption
from framegrove.verification.views import View


@dataclass(frozen=True)
class Labelled:
    """A question, its true answer, and its kind: "true", or what makes it false, as "absent", "swapped" or "drift"."""

    text: str
    answer: bool
    aspect: Aspect
    kind: str


_ASPECTS_MOVING = {
    Aspect.BINDING: 0.23,
    Aspect.MOTION: 0.22,
    Aspect.DIGIT: 0.09,
    Aspect.COLOUR: 0.08,
    Aspect.COUNT: 0.06,
    Aspect.MATCH: 0.16,
    Aspect.STABILITY: 0.15,
    Aspect.CLARITY: 0.04,
}
_ASPECTS_UNIT = {
    Aspect.BINDING: 0.34,
    Aspect.MOTION: 0.26,
    Aspect.DIGIT: 0.05,
    Aspect.COLOUR: 0.03,
    Aspect.COUNT: 0.09,
    Aspect.STABILITY: 0.19,
    Aspect.CLARITY: 0.04,
}
_ASPECTS_STILL = {
    Aspect.BINDING: 0.42,
    Aspect.DIGIT: 0.20,
    Aspect.COLOUR: 0.07,
    Aspect.COUNT: 0.12,
    Aspect.MATCH: 0.16,
    Aspect.CLARITY: 0.08,
}


def ask_about(scene: Scene, rng: np.random.Generator, count: int) -> list[Labelled]:
    """``count`` questions about ``scene``, shortest first; yes and no are equally likely where both are possible."""
    pools = {aspect: _POOLS[aspect](scene) for aspect in Aspect}
    moving = _ASPECTS_UNIT if scene.view is View.UNIT else _ASPECTS_MOVING
    odds = _ASPECTS_STILL if scene.frames.shape[0] == 1 else moving
    aspects = [a for a in odds if pools[a]]
    weights = np.asarray([odds[a] for a in aspects])
    picks = [aspects[int(at)] for at in rng.choice(len(aspects), count, p=weights / weights.sum())]
    whole = [at for at, aspect in enumerate(picks) if aspect is Aspect.MATCH]
    for at in whole[_MOST_WHOLE:]:
        picks[at] = Aspect.BINDING
    return sorted((_draw(pools[aspect], rng) for aspect in picks), key=lambda q: len(q.text.split()))


_MOST_WHOLE = 2  # whole captions per clip: they are long, and more would widen all questions of a batch
# Relative odds of the kinds of negatives, 1 where none is given: easy ones are rare, and those frequent that require
# knowing which object has which attribute.
_ODDS = {"absent": 0.3, "swapped": 3.0, "swapped digits": 3.0, "swapped motions": 2.0, "drift": 2.0, "malformed": 2.0}


def _draw(pool: list[Labelled], rng: np.random.Generator) -> Labelled:
    wanted = rng.random() < 0.5
    fitting = [q for q in pool if q.answer == wanted] or pool
    kinds = sorted({q.kind for q in fitting})
    edges = np.cumsum([_ODDS.get(kind, 1.0) for kind in kinds])
    kind = kinds[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
    of_kind = [q for q in fitting if q.kind == kind]
    return of_kind[int(rng.integers(len(of_kind)))]


def _steady(scene: Scene) -> set[tuple[int, str]]:
    return {
        (d.steady_digit, d.steady_colour)
        for d in scene.drawn
        if d.steady_digit is not None and d.steady_colour is not None
    }


def _ever(scene: Scene) -> tuple[set[int], set[str]]:
    """Digits and colours that some frame shows, or that were meant to be shown."""
    digits = {d.name.digit for d in scene.drawn} | {n for d in scene.drawn for n in d.digits if n is not None}
    colours = {d.name.colour for d in scene.drawn} | {c for d in scene.drawn for c in d.colours if c is not None}
    return digits, colours


def _passing_kind(drawn: Drawn) -> str:
    return "malformed" if drawn.fault is SceneFault.MALFORMED else "drift"


def _bindings(scene: Scene) -> list[Labelled]:
    true = _steady(scene)
    digits, colours = _ever(scene)
    found: dict[tuple[int, str], tuple[bool, str]] = {}
    for d in DIGITS:
        for c in COLOURS:
            if d not in digits and c not in colours:
                found[d, c] = (False, "absent")
            elif d not in digits:
                found[d, c] = (False, "digit changed")
            elif c not in colours:
                found[d, c] = (False, "colour changed")
            else:
                found[d, c] = (False, "swapped")
    for drawn in scene.drawn:
        seen = {(n, c) for n, c in zip(drawn.digits, drawn.colours, strict=True) if n is not None and c is not None}
        for name in seen | {(drawn.name.digit, drawn.name.colour)}:
            found[name] = (False, _passing_kind(drawn))
    for name in true:
        found[name] = (True, "true")
    return [Labelled(ask.ask_binding(d, c), yes, Aspect.BINDING, kind) for (d, c), (yes, kind) in found.items()]


def _digits(scene: Scene) -> list[Labelled]:
    true = {d.steady_digit for d in scene.drawn}
    kinds = dict.fromkeys(DIGITS, "absent")
    for drawn in scene.drawn:
        kinds |= {n: _passing_kind(drawn) for n in (*drawn.digits, drawn.name.digit) if n is not None}
    return [Labelled(ask.ask_digit(n), n in true, Aspect.DIGIT, "true" if n in true else kinds[n]) for n in DIGITS]


def _colours(scene: Scene) -> list[Labelled]:
    true = {d.steady_colour for d in scene.drawn}
    ever = _ever(scene)[1]
    kinds = {c: "drift" if c in ever else "absent" for c in COLOURS}
    return [Labelled(ask.ask_colour(c), c in true, Aspect.COLOUR, "true" if c in true else kinds[c]) for c in COLOURS]


def _nameable(scene: Scene) -> bool:
    """Whether colour and digit tell every object from the others, and every frame shows all of them."""
    names = {(d.name.digit, d.name.colour) for d in scene.drawn}
    return len(names) == len(scene.drawn) and all(None not in d.colours for d in scene.drawn)


def _motions(scene: Scene) -> list[Labelled]:
    if scene.frames.shape[0] == 1 or not _nameable(scene):
        return []
    found = []
    for drawn in scene.drawn:
        others = {d.motion for d in scene.drawn if d is not drawn}
        for motion in MOTIONS:
            if motion == drawn.motion:
                kind = "true"
            elif drawn.motion is None:
                kind = "still" if drawn.fault is SceneFault.STILL else "swerve"
            else:
                kind = "swapped" if motion in others else "motion changed"
            question = ask.ask_motion_now if scene.view is View.UNIT else ask.ask_motion
            text = question(drawn.name.digit, drawn.name.colour, motion)
            found.append(Labelled(text, kind == "true", Aspect.MOTION, kind))
    return found


def _counts(scene: Scene) -> list[Labelled]:
    there = len(scene.drawn)
    if any(None in d.colours for d in scene.drawn):  # not as many in every frame
        steady = sum(None not in d.colours for d in scene.drawn)
        return [Labelled(ask.ask_count(n), False, Aspect.COUNT, "drift") for n in (1, 2) if steady < n <= there]
    wrong = "absent" if there < 3 else "extra"
    return [Labelled(ask.ask_count(n), n == there, Aspect.COUNT, "true" if n == there else wrong) for n in (1, 2)]


def _matches(scene: Scene) -> list[Labelled]:
    """Whole captions, with and without motion: the true one, and ones with a single mistake."""
    named = tuple(d.name for d in scene.drawn)
    held = len(_steady(scene)) == len(named)
    moving = all(d.motion is not None for d in scene.drawn)
    versions = [(fewer, "extra") for fewer in _with_one_less(named)]
    if len(named) < 3 and (_nameable(scene) or not held):
        spoiled = "malformed" if any(d.fault is SceneFault.MALFORMED for d in scene.drawn) else "drift"
        versions.append((named, "true" if held else spoiled))
        if held:
            versions += _near_misses(named, _ever(scene))
    found = []
    for objects, kind in versions:
        if kind not in ("swapped motions", "motion changed"):
            found.append(Labelled(ask.ask_match(static_scene(objects)), kind == "true", Aspect.MATCH, kind))
        if scene.frames.shape[0] > 1:
            astray = kind if moving or kind != "true" else "motion changed"
            found.append(Labelled(ask.ask_match(caption(objects)), astray == "true", Aspect.MATCH, astray))
    return found


def _with_one_less(named: tuple[DigitObject, ...]) -> list[tuple[DigitObject, ...]]:
    """All objects but one, in every way that is a valid caption: digits and colours must differ."""
    fewer = [tuple(one for at, one in enumerate(named) if at != left_out) for left_out in range(len(named))]
    return [
        rest
        for rest in fewer
        if rest and len({one.digit for one in rest}) == len({one.colour for one in rest}) == len(rest)
    ]


def _near_misses(
    named: tuple[DigitObject, ...], ever: tuple[set[int], set[str]]
) -> list[tuple[tuple[DigitObject, ...], str]]:
    missed: list[tuple[tuple[DigitObject, ...], str]] = []
    other_digits = [n for n in DIGITS if n not in ever[0]]
    other_colours = [c for c in COLOURS if c not in ever[1]]
    for at, one in enumerate(named):
        changes = [(DigitObject(n, one.colour, one.motion), "digit changed") for n in other_digits]
        changes += [(DigitObject(one.digit, c, one.motion), "colour changed") for c in other_colours]
        changes += [(DigitObject(one.digit, one.colour, m), "motion changed") for m in MOTIONS if m != one.motion]
        missed += [((*named[:at], changed, *named[at + 1 :]), kind) for changed, kind in changes]
    if len(named) == 1:
        extra = [DigitObject(n, c, m) for n in other_digits[:3] for c in other_colours[:2] for m in MOTIONS]
        return missed + [((named[0], other), "missing") for other in extra]
    one, two = named
    if one.digit != two.digit and one.colour != two.colour:
        traded = (DigitObject(two.digit, one.colour, one.motion), DigitObject(one.digit, two.colour, two.motion))
        missed.append((traded, "swapped digits"))
    if one.motion != two.motion:
        crossed = (DigitObject(one.digit, one.colour, two.motion), DigitObject(two.digit, two.colour, one.motion))
        missed.append((crossed, "swapped motions"))
    return missed


def _stabilities(scene: Scene) -> list[Labelled]:
    faults = {d.fault for d in scene.drawn}
    if scene.frames.shape[0] == 1 or faults & {SceneFault.MALFORMED, SceneFault.RESTYLE}:
        return []
    broken = faults & {SceneFault.MORPH, SceneFault.MELT, SceneFault.RECOLOUR, SceneFault.VANISH}
    kind = min(fault.value for fault in broken) if broken else "true"
    return [Labelled(ask.ASK_STABLE, not broken, Aspect.STABILITY, kind)]


def _clarities(scene: Scene) -> list[Labelled]:
    if scene.quality is Quality.FAIR:
        return []
    clear = scene.quality is Quality.CLEAR
    return [Labelled(ask.ASK_CLEAR, clear, Aspect.CLARITY, "true" if clear else "unclear")]


_POOLS: dict[Aspect, Callable[[Scene], list[Labelled]]] = {
    Aspect.BINDING: _bindings,
    Aspect.DIGIT: _digits,
    Aspect.COLOUR: _colours,
    Aspect.MOTION: _motions,
    Aspect.COUNT: _counts,
    Aspect.MATCH: _matches,
    Aspect.STABILITY: _stabilities,
    Aspect.CLARITY: _clarities,
}
