"""Train a latent judge, which tells from latents what a panel of verifiers would say of the decoded video.

    python -m jobs.collect --prompts digits:500 --policy beam --budget 6x --margin 0 --least 0 --out runs/siblings
    python -m jobs.train_judge --data runs/siblings --out runs/judge

learns from the pairs of siblings, and the winners, that jobs.collect has left, and holds the judge against the panel on
prompts that it has not seen. --model is the model that the searches were made with: the judge reads its latents, and
is refused beside a model with another VAE. OUT becomes the judge's folder (judge.json, judge.safetensors, its text
encoder, and report.json), for a panel's file:

    verifiers: [{name: latent, kind: latent, latent: {model: runs/judge}}]

Pairs with a large --margin alone, as models learn from, serve too, but of such data one half is right and one half
wrong: the judge's order is as good, and its probabilities are then those of jobs.evaluate --calibrate.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.errors import UserError
from framegrove.words import counted
from jobs.console import (
    Display,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    VariantOption,
    application,
    make_folder,
    model_source,
    one_line_errors,
    refuse_taken,
)

if TYPE_CHECKING:
    from framegrove.models.latent_judge import LatentJudge, LatentSpace
    from framegrove.models.text import TextEncoder
    from framegrove.training.judge import Harvested, Siblings

app = application()
REPORT = "report.json"


@app.command()
def main(
    data: Annotated[list[Path], typer.Option(help="Folder of jobs.collect (repeatable).")],
    out: Annotated[Path, typer.Option(help="The judge's folder.")],
    model: ModelOption = None,
    variant: VariantOption = None,
    allow_pickle: PickleOption = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Pairs a step.")] = 64,
    width: Annotated[int, typer.Option(min=8, help="Channels of the network, a multiple of 8.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of AdamW, at its highest.")] = 1e-3,
    heldout: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the prompts that it is tested on.")
    ] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and batches.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Train a latent judge on what searches have left."""
    with one_line_errors(log_level), Display() as display:
        _check(width, device)
        refuse_taken(out, "judge.json", overwrite)
        make_folder(out.absolute().parent)
        source = model_source(model, variant, "float32", allow_pickle)
        display.begin("reading the model")
        import torch

        from actors.model_files import ModelFiles
        from framegrove.training.judge import read_harvest

        torch.set_num_threads(threads)
        files = ModelFiles.read(source)
        space = files.latents()
        display.begin("reading pairs")
        kept, apart = read_harvest(
            data, space, heldout, lambda done, total: display.show(done / total, f"{done} of {counted(total, 'pair')}")
        )
        _check_split(kept.pairs, apart.pairs, heldout)
        text = _text(files, kept.prompts, allow_pickle)
        how = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
        judge, seconds = _trained(kept, files.vae.decoder_in_channels, width, text, device, how, display)
        display.begin("judging what was held out")
        facts = {**_facts(judge, kept, apart), "trained_s": round(seconds, 1), **how, **measured(judge, apart.pairs)}
        _save(judge, space, out, facts)
        _tell(facts, out, display)


def _check(width: int, device: str) -> None:
    """Raise UserError for a network or a device that cannot be."""
    if width % 8:
        raise UserError(f"--width {width} is no multiple of 8")
    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device} is not here: give cpu, or cuda where there is a GPU")


def _trained(
    kept: Harvested, channels: int, width: int, text: TextEncoder, device: str, how: dict[str, Any], display: Display
) -> tuple[LatentJudge, float]:
    """A judge of latents of so many channels, and how many seconds its training took."""
    from framegrove.models.latent_judge import JudgeShape
    from framegrove.training.judge import train_judge

    steps, began = how["steps"], time.monotonic()
    display.begin("training the judge")
    judge = train_judge(
        kept,
        JudgeShape(channels, width),
        text.train().requires_grad_(True),
        **how,
        device=device,
        on_step=lambda step, loss: display.show(step / steps, f"step {step} of {steps}, loss {loss:.3f}"),
    )
    return judge, time.monotonic() - began


def _facts(judge: LatentJudge, kept: Harvested, apart: Harvested) -> dict[str, Any]:
    """What a judge has learned from, and how large it is."""
    return {
        "pairs": len(kept.pairs),
        "winners": len(kept.winners),
        "held_out_pairs": len(apart.pairs),
        "held_out_prompts": len(apart.prompts),
        "parameters": sum(parameter.numel() for parameter in judge.parameters()),
        "flops": judge.flops(kept.prompts[0], *kept.pairs[0].sights[0].shape[-2:]),
    }


def _save(judge: LatentJudge, space: LatentSpace, out: Path, facts: dict[str, Any]) -> None:
    """Write the judge's folder."""
    from framegrove.files import replacing, write_json
    from framegrove.models.latent_judge import save_judge

    with replacing(out) as partial:
        save_judge(judge, space, partial, facts)
        write_json(partial / REPORT, facts)


def measured(judge: LatentJudge, pairs: Sequence[Siblings]) -> dict[str, Any]:
    """How well a judge agrees with the panel on pairs that it has not seen, as JSON values.

    ``siblings``: the share of pairs in the panel's order, which is the AUC within siblings. ``verdicts``: its
    probabilities against the panel's verdict, right or not, of every sibling. ``correlation``: of the log-odds.
    """
    import numpy as np

    from framegrove.config.verifier import log_odds
    from framegrove.evaluation.agreement import agreement, as_json, pairs_agreement
    from framegrove.training.judge import judged
    from framegrove.verification.scoring import probability

    odds_N2 = judged(judge, pairs)
    prompt_numbers = {prompt: at for at, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    prompts = [prompt_numbers[pair.prompt] for pair in pairs]
    order = pairs_agreement(odds_N2[:, 0], odds_N2[:, 1], prompts)
    # The best of some siblings is in as many pairs as there are others, and one verdict.
    families = {family: at for at, family in enumerate(dict.fromkeys(pair.family for pair in pairs))}
    each: dict[tuple[int, bytes], tuple[float, float, int]] = {}  # by family and what tells a sibling
    for pair, odds, prompt in zip(pairs, odds_N2, prompts, strict=True):
        for which in (0, 1):
            key = families[pair.family], hashlib.sha256(pair.sights[which].tobytes()).digest()
            each[key] = float(odds[which]), pair.chances[which], prompt
    said, chances, of_prompts = (list(column) for column in zip(*each.values(), strict=True))
    verdicts = agreement(
        [probability(odd) for odd in said],
        [chance >= 0.5 for chance in chances],
        [int(prompt) for prompt in of_prompts],
        [family for family, _ in each],
    )
    panel = [log_odds(chance) for chance in chances]
    varied = np.std(said) > 0 and np.std(panel) > 0
    return {
        "siblings": as_json(order),
        "verdicts": as_json(verdicts),
        "correlation": float(np.corrcoef(said, panel)[0, 1]) if varied else None,
    }


def _check_split(kept: Sequence[Siblings], apart: Sequence[Siblings], heldout: float) -> None:
    """Raise UserError where one of the two parts is empty."""
    for part, what in ((kept, "to learn from"), (apart, "to test the judge on")):
        if not part:
            raise UserError(
                f"of {counted(len(kept) + len(apart), 'pair')} none is left {what}: collect more prompts, or give "
                f"another --heldout than {heldout:g}"
            )


def _text(files: Any, prompts: Sequence[str], allow_pickle: bool) -> TextEncoder:
    """The model's own text encoder where it is a small one; otherwise a new one for the words of these prompts."""
    import torch

    from framegrove.config.model import TextConfig
    from framegrove.models.pretrained import load_text
    from framegrove.models.text import TextEncoder, vocabulary

    if not (files.place.text / "text_encoder_2").is_dir():
        found = load_text(files.place.text, torch.float32, allow_pickle=allow_pickle)
        assert isinstance(found, TextEncoder), "a public model has several text encoders"
        return found
    return TextEncoder.fresh(TextConfig(), vocabulary(prompts))


def _tell(facts: dict[str, Any], out: Path, display: Display) -> None:
    """Print how well it judges."""
    from rich.table import Table

    verdicts = facts["verdicts"]
    table = Table(title=f"Against the panel, {counted(facts['held_out_prompts'], 'prompt')} that it has not seen")
    for column in ("measure", "of", "value [95%]"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    rows = [
        ("AUC within siblings: pairs in the panel's order", facts["held_out_pairs"], facts["siblings"]),
        ("AUC within siblings: right above wrong", verdicts["pairs"], verdicts["within"]),
        ("AUC across prompts: right above wrong", verdicts["verdicts"], verdicts["across"]),
        ("accuracy at one half", verdicts["verdicts"], verdicts["accuracy"]),
        ("calibration error", verdicts["verdicts"], verdicts["calibration"]),
    ]
    for name, count, value in rows:
        shown = "-" if value["mean"] is None else f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        table.add_row(name, str(count), shown)
    display.console.print(table)
    said = (
        f"{facts['parameters']:,} parameters, {facts['flops']:.3g} FLOPs a verdict, trained in {facts['trained_s']} s"
    )
    display.say(f"{said}\n{out}")


if __name__ == "__main__":
    app()
