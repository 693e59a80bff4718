"""Sample groups of siblings from a generator of the digits world, read by the teacher, to train its verifier on.

    python -m jobs.siblings --model runs/digits/model --out runs/siblings

Prompts are those of the training split. Shards of 12 prompts go to OUT as they are finished, and the teacher's weights
to OUT/teacher.safetensors; interrupted, the same command resumes. Every eighth shard is kept apart from training, for
calibration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

app = application()


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the groups; an unfinished one is continued.")],
    model: Annotated[str | None, typer.Option(help="Generator: a model folder; the shipped one if left out.")] = None,
    groups: Annotated[int, typer.Option(help="How many groups, rounded up to whole shards.", min=1)] = 3000,
    units: Annotated[int, typer.Option(help="Length of the longest videos, in units.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Seed of prompts and noise.", min=0)] = 0,
    log_level: LogLevelOption = None,
) -> None:
    """Sample groups of siblings for the verifier's training, in this process, on one CPU thread."""
    with one_line_errors(log_level), Display() as display:
        make_folder(out)
        display.begin("teaching the teacher")
        import torch

        from framegrove.digits.sibling_files import keep_facts, sample_shards
        from framegrove.digits.teacher_training import taught
        from framegrove.models.pretrained import load_pipeline

        torch.set_num_threads(1)

        def on_step(step: int, steps: int, loss: float) -> None:
            display.show(step / steps, f"step {step} of {steps}, loss {loss:.3f}")

        teacher = taught(out / "teacher.safetensors", on_step=on_step)
        keep_facts(out, {"model": model or "shipped", "units": units, "seed": seed})
        display.begin("sampling siblings")
        sample_shards(
            out,
            load_pipeline(model),
            teacher.read,
            split="train",
            groups=groups,
            units=units,
            seed=seed,
            on_groups=lambda done, total: display.show(done / total, f"{done} of {total} groups"),
        )
        display.say(f"groups: {out}")


if __name__ == "__main__":
    app()
