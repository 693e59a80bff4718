"""What ``jobs.generate --plan`` prints: what a model needs and what searching it costs, by its configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framegrove.words import counted
from jobs.console import Display, duration

if TYPE_CHECKING:
    from actors.model_files import Card
    from framegrove.config.verifier import PanelConfig
    from framegrove.generators.protocol import Needs
    from framegrove.types import GenerationRequest

_A100, _MFU = 312e12, 0.4  # FLOP/s of an A100 in bfloat16, and the share of them that a model of videos reaches


def show_plan(card: Card, request: GenerationRequest, budget: float, panel: PanelConfig, display: Display) -> None:
    """Print weights and memory, where the model's kind can tell, and FLOPs and seconds of a sample and of a search."""
    display.begin("counting")
    cost, needs = card.costs(request).unsearched(request.units), getattr(card, "needs", None)
    told = needs(request) if needs is not None else None
    if told is not None:
        _print_needs(card.name, told, display)
    native, steps = card.native, cost.nfe
    display.say(
        f"a video of {counted(native.frames_of(request.units), 'frame')} of {request.width}x{request.height}, in "
        f"{counted(steps, 'evaluation')} of the network: {_flops(cost.flops / max(1, steps))} each, guidance included, "
        f"and {_flops(cost.decoding)} of decoding"
    )
    for name, times in (("one sample", 1.0), (f"a search at {budget:g}x", budget)):
        flops = times * cost.all_flops
        display.say(f"{name}: {_flops(flops)}, {_seconds(flops / (_A100 * _MFU))} on an A100")
    if left := _left(card, request, panel):
        display.say(
            f"no verifier looks at the frames of {left}: a search decodes them in its winner, and in what a verifier "
            "looks at later, and samples the more for its budget"
        )
    display.say(
        f"seconds are those of {_A100 / 1e12:.0f} TFLOP/s in bfloat16, of which {_MFU:.0%} are taken to be reached; a "
        "budget counts judging too"
    )


def _left(card: Card, request: GenerationRequest, panel: PanelConfig) -> str:
    """Which units a search leaves as latents where its policy judges each of them, in words; none: nothing."""
    from actors.finishing import left_as_latents, looked_at
    from framegrove.search.tree import Layout
    from framegrove.types import Assessment

    layout = Layout(request.units, card.stages)
    depths = left_as_latents(layout, tuple(Assessment), looked_at(panel.verifiers)).depths
    if len(depths) == request.units:
        return "any unit"
    return f"unit{'s' if len(depths) > 1 else ''} {', '.join(str(depth) for depth in sorted(depths))}" if depths else ""


def _print_needs(name: str, needs: Needs, display: Display) -> None:
    from rich.table import Table

    table = Table(title=f"What {name} takes")
    table.add_column("")
    for column in ("weights", "GB"):
        table.add_column(column, justify="right")
    for part, count in needs.weights.items():
        table.add_row(part, f"{count / 1e9:.3g} B", _gb(count * needs.width))
    total = sum(needs.weights.values()) * needs.width
    table.add_row("all weights", f"{sum(needs.weights.values()) / 1e9:.3g} B", _gb(total), end_section=True)
    table.add_row("largest part alone (offload: model)", "", _gb(max(needs.weights.values()) * needs.width))
    table.add_row("about, while denoising", "", _gb(needs.denoising))
    table.add_row("about, while decoding", "", _gb(needs.decoding))
    table.add_row("a branch between two stages", "", _gb(needs.latent))
    display.console.print(table)


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.2g} ms"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e8 else f"{count / 1e9:.2g}"


def _flops(count: float) -> str:
    if count < 1e14:
        return f"{count / 1e9:,.3g} GFLOPs" if count < 1e12 else f"{count / 1e12:.3g} TFLOPs"
    return f"{count / 1e15:.3g} PFLOPs" if count < 1e18 else f"{count / 1e15:,.0f} PFLOPs"
