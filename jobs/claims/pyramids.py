"""What the temporal pyramid saves: tokens and FLOPs, counted, and the time of a step, measured (PFM section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.claims.claim import Bench, Claim, Figure, Finding

if TYPE_CHECKING:
    from framegrove.config.model import AnyTransformerConfig, Recipe
    from framegrove.models.packed import Sample
    from framegrove.models.pretrained import Pipeline

Shape = tuple[int, int, int]

UNITS = 31  # of a video of 10 s
SIZE = (96, 160)  # of the latents at 768p, 1280x768 pixels
COMPRESSED, FULL = 15_360, 119_040  # tokens, as published
_TEXT = 128  # tokens of a prompt, as the released text encoder pads to
_STAGES, _PATCH = 3, 2
_TIMED = (1, 3, 7, 11, 15)  # units of which a step is timed
_SIDES = (64, 256)  # px
_TURNS = 7
_TOGETHER = {64: 16, 256: 2}  # samples in a pass


def tokens(bench: Bench) -> Finding:
    """Tokens of the last unit of 10 s at 768p, by the code that samplers and budgets count with."""
    from framegrove.config.model import TransformerConfig
    from framegrove.flow.history import history_shapes, sample_tokens, token_count
    from framegrove.models.flops import layout_tokens

    whole: list[Shape] = [(1, *SIZE)] * UNITS
    compressed = [sample_tokens(whole[: n + 1], _STAGES - 1, _STAGES, _PATCH) for n in range(UNITS)]
    full = [token_count(whole[: n + 1], _PATCH) for n in range(UNITS)]
    priced = layout_tokens(TransformerConfig(), 0, history_shapes(whole[:-1], _STAGES - 1, _STAGES), whole[-1])
    figures = (
        Figure("tokens of the last unit, history compressed", compressed[-1]),
        Figure("the same, as budgets count them", priced),
        Figure("tokens of full-sequence diffusion", full[-1]),
        Figure("times fewer", full[-1] / compressed[-1]),
        Figure("times fewer, mean over the units", sum(f / c for f, c in zip(full, compressed, strict=True)) / UNITS),
    )
    met = (compressed[-1], priced, full[-1]) == (COMPRESSED, COMPRESSED, FULL)

    def draw(path: Path) -> None:
        from framegrove.evaluation.figures import COLOURS, save
        from jobs.claims.drawing import canvas, dress

        figure, (axes,) = canvas(title="Tokens of a unit and its past, 10 s at 768p, full resolution")
        axes.plot(range(UNITS), full, color=COLOURS[1], marker="o", ms=3, label="whole past at full resolution")
        axes.plot(range(UNITS), compressed, color=COLOURS[0], marker="o", ms=3, label="temporal pyramid")
        for values, where in ((full, (-52, -4)), (compressed, (-40, 6))):
            axes.annotate(f"{values[-1]:,}", (UNITS - 1, values[-1]), where, textcoords="offset points", fontsize=8)
        dress(axes, x="unit", y="visual tokens")
        save(figure, path)

    return Finding(figures, figures[0].name, met, draw)


def unit_cost(bench: Bench) -> Finding:
    """FLOPs of a unit by its depth: SD3's transformer, 768p, as many steps and stages as released."""
    from framegrove.config.model import TransformerConfig
    from framegrove.flow.history import history_shapes
    from framegrove.models.flops import layout_flops
    from framegrove.models.public import RELEASED

    config, recipe = TransformerConfig(), RELEASED

    def compressed(unit: int, stage: int) -> int:
        past = history_shapes([(1, *SIZE)] * unit, stage, _STAGES)
        return layout_flops(config, _TEXT, past, _at(stage))

    def uncompressed(unit: int, stage: int) -> int:
        _, height, width = _at(stage)
        return layout_flops(config, _TEXT, [(unit, height, width)] if unit else [], _at(stage))

    sums = {step: [_of_unit(recipe, unit, step) for unit in range(UNITS)] for step in (compressed, uncompressed)}
    whole = config.model_copy(update={"use_temporal_causal": False})
    together = 2 * sum(recipe.steps.others) * layout_flops(whole, _TEXT, [], (UNITS, *SIZE))
    small, large = sums[compressed], sums[uncompressed]
    last = _STAGES - 1
    step = uncompressed(UNITS - 1, last) / compressed(UNITS - 1, last)
    figures = (
        Figure("a step of the last unit, past at full resolution / compressed", step, unit="times"),
        Figure("the last unit, all stages and steps, the same", large[-1] / small[-1], unit="times"),
        Figure("a video of 31 units, the same", sum(large) / sum(small), unit="times"),
        Figure("full-sequence diffusion of the same video / compressed", together / sum(small), unit="times"),
        Figure("first unit, compressed", small[0] / 1e15, unit="PFLOPs"),
        Figure("last unit, compressed", small[-1] / 1e15, unit="PFLOPs"),
        Figure("last unit, past at full resolution", large[-1] / 1e15, unit="PFLOPs"),
        Figure("last unit / second unit, compressed", small[-1] / small[1], unit="times"),
    )

    def draw(path: Path) -> None:
        from framegrove.evaluation.figures import COLOURS, save
        from jobs.claims.drawing import canvas, dress

        figure, panels = canvas(2, title="FLOPs of a unit at 768p by depth, SD3's transformer, guided, all steps")
        for axes, scale in zip(panels, ("linear", "log"), strict=True):
            for values, colour, name in (
                (large, COLOURS[1], "past as fine as the unit"),
                (small, COLOURS[0], "past compressed"),
            ):
                axes.plot(range(UNITS), [v / 1e15 for v in values], color=colour, marker="o", ms=3, label=name)
            axes.axhline(
                together / UNITS / 1e15,
                color=COLOURS[2],
                ls="--",
                lw=1.2,
                label="full-sequence diffusion, a unit's share",
            )
            axes.set_yscale(scale)
            dress(axes, x="unit", y="PFLOPs", legend=scale == "log")
        save(figure, path)

    remarks = (
        "exact counts of all matrix products, attention as the block-causal mask lets it through; nothing was run",
    )
    return Finding(figures, figures[0].name, step >= FULL / COMPRESSED, draw, remarks)


def _at(stage: int) -> Shape:
    factor = 2 ** (_STAGES - 1 - stage)
    return (1, SIZE[0] // factor, SIZE[1] // factor)


def _of_unit(recipe: Recipe, unit: int, step: Callable[[int, int], int]) -> int:
    """FLOPs of all guided steps of a unit."""
    return sum(2 * count * step(unit, stage) for stage, count in enumerate(recipe.steps.of(unit)))


def temporal(bench: Bench) -> Finding:
    """The time of one pass of the shipped model at full resolution, by unit, its past compressed or not."""
    from framegrove.evaluation.curves import bootstrap
    from framegrove.models.flops import layout_flops
    from framegrove.models.pretrained import load_source

    pipeline = load_source(bench.model)
    config = pipeline.transformer.config
    timed, flops, counts = {}, {}, {}
    units = [unit for unit in _TIMED if unit < config.max_num_frames]
    for side in _SIDES:
        for done, unit in enumerate(units):
            bench.display.show((done + len(units) * _SIDES.index(side)) / (2 * len(units)), f"unit {unit} at {side} px")
            key = side, unit
            samples = {name: _samples(pipeline, side, unit, name, _TOGETHER[side]) for name in ("compressed", "full")}
            timed[key] = _timed(pipeline, samples)
            shapes = {name: [_shape(clip) for clip in some[0].prefix.history] for name, some in samples.items()}
            current = _shape(samples["full"][0].current)
            text = len(samples["full"][0].prefix.text.tokens_LD)
            flops[key] = {name: layout_flops(config, text, past, current) for name, past in shapes.items()}
            counts[key] = {name: _tokens(config, [*past, current]) for name, past in shapes.items()}
    last = units[-1]
    ratios = {key: bootstrap([full / small for small, full in turns]) for key, turns in timed.items()}
    figures = []
    for side in _SIDES:
        key = side, last
        figures += [
            Figure.of(f"CPU time of a step, unit {last}, {side} px: full / compressed", ratios[key], "times"),
            Figure(f"FLOPs, the same, {side} px", flops[key]["full"] / flops[key]["compressed"], unit="times"),
            Figure(f"tokens, compressed, {side} px", counts[key]["compressed"]),
            Figure(f"tokens, full, {side} px", counts[key]["full"]),
            Figure(f"ms of a step and sample, compressed, {side} px", _ms(timed[key], 0, side), unit="ms"),
            Figure(f"ms of a step and sample, full, {side} px", _ms(timed[key], 1, side), unit="ms"),
        ]
    headline = f"CPU time of a step, unit {last}, {_SIDES[-1]} px: full / compressed"

    def draw(path: Path) -> None:
        from framegrove.evaluation.figures import COLOURS, MUTED, save
        from jobs.claims.drawing import banded, canvas, dress

        figure, panels = canvas(2, title="A step with the whole past, beside one with it compressed")
        for axes, side in zip(panels, _SIDES, strict=True):
            banded(axes, units, [ratios[side, unit] for unit in units], color=COLOURS[0], label="CPU time, measured")
            for name, values, colour in (("FLOPs", flops, COLOURS[1]), ("tokens", counts, COLOURS[2])):
                drawn = [values[side, unit]["full"] / values[side, unit]["compressed"] for unit in units]
                axes.plot(units, drawn, color=colour, marker="o", ms=3, lw=1.2, label=name)
            axes.axhline(1.0, color=MUTED, lw=0.8, ls="--")
            dress(axes, x="unit", y="times as much with the whole past", title=f"{side}x{side} px, full resolution")
        save(figure, path)

    remarks = (
        f"one thread, {_TURNS} turns each after one to warm up, which take turns; "
        + " and ".join(f"{_TOGETHER[side]} samples a pass at {side} px" for side in _SIDES),
        "pasts are random latents: a step takes as long whatever they hold",
        "at 64 px, all that the shipped model knows, 16 of 49 tokens are the unit itself",
    )
    return Finding(tuple(figures), headline, ratios[_SIDES[-1], last].low >= 2, draw, remarks)


def _samples(pipeline: Pipeline, side: int, unit: int, history: str, count: int) -> list[Sample]:
    """``count`` samples of one unit at full resolution, each with a past of its own."""
    import torch

    from framegrove.flow.history import history_clips
    from framegrove.models.packed import Prefix, Sample

    stages = pipeline.recipe.pyramid.stages
    size = side // pipeline.vae.config.spatial_factor
    random = torch.Generator().manual_seed(unit)
    channels = pipeline.transformer.config.in_channels
    (text,) = pipeline.text.encode(["a green 7 moves up and down and a blue 2 moves left and right"])
    found = []
    for _ in range(count):
        units = [torch.randn(channels, 1, size, size, generator=random) for _ in range(unit)]
        past = history_clips(units, stages - 1, stages) if history == "compressed" else (torch.cat(units, dim=1),)
        found.append(Sample(Prefix(text, past), torch.randn(channels, 1, size, size, generator=random), 500.0))
    return found


def _timed(pipeline: Pipeline, samples: dict[str, list[Sample]]) -> list[tuple[float, float]]:
    """CPU seconds of a pass, (compressed, full), turn by turn."""
    import time

    import torch

    def once(some: list[Sample]) -> float:
        began = time.process_time()
        with torch.inference_mode():
            pipeline.transformer(pipeline.transformer.pack(some))
        return time.process_time() - began

    for some in samples.values():
        once(some)
    return [(once(samples["compressed"]), once(samples["full"])) for _ in range(_TURNS)]


def _ms(turns: Sequence[tuple[float, float]], which: int, side: int) -> float:
    return 1000 * sorted(turn[which] for turn in turns)[len(turns) // 2] / _TOGETHER[side]


def _shape(clip: object) -> Shape:
    _, time, height, width = clip.shape  # type: ignore[attr-defined]
    return int(time), int(height), int(width)


def _tokens(config: AnyTransformerConfig, shapes: Sequence[Shape]) -> int:
    from framegrove.flow.history import token_count

    return token_count(shapes, config.patch_size)


CLAIMS = (
    Claim(
        name="tokens",
        question="How many tokens does the last unit of 10 s at 768p have, its past compressed or not?",
        source="PFM section 3.3",
        measured="exact counts, by the code that lays out samples and by the one that prices them",
        aim=f"exactly {COMPRESSED:,} and {FULL:,}",
        takes="5 s",
        run=tokens,
    ),
    Claim(
        name="unit-cost",
        question="What does a unit cost at 768p, by its depth, its past compressed or not?",
        source="PFM section 3.3; transformer of appendix B; steps as released",
        measured="FLOPs from exact shapes: SD3's transformer of 2 B weights, 31 units, three stages, guided",
        aim=f"a step of the last unit at full resolution is at least {FULL / COMPRESSED:.2f} times cheaper, as many as "
        "the tokens are fewer",
        takes="5 s",
        run=unit_cost,
        missing="the time on a GPU",
    ),
    Claim(
        name="temporal-pyramid",
        question="What does compressing the past save in tokens, FLOPs and time?",
        source="PFM section 3.3, temporal pyramid",
        measured="CPU time of a pass of the shipped model at full resolution, by unit, beside its FLOPs and tokens, at "
        "the model's 64 px and at 256 px",
        aim="a step of unit 15 at 256 px takes at most half the time (lower end of the ratio's interval)",
        takes="2 min",
        run=temporal,
        missing="quality: the shipped model was trained with compressed pasts, and a fair comparison takes a second "
        "one that was trained without",
    ),
)
