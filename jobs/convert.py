"""Write any model as a whole model folder: an adapter merged into its base, or SD3 Medium in our layout.

    python -m jobs.convert --model runs/mine --out models/mine
    python -m jobs.convert --model downloads/sd3_medium --vae downloads/causal_video_vae --out models/sd3

What is written needs no other model beside it, and everything that takes a model takes it.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Display, LogLevelOption, OverwriteOption, application, one_line_errors, refuse_taken

app = application()


class Precision(StrEnum):
    """In which the transformer's weights are written."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@app.command()
def main(
    model: Annotated[
        str, typer.Option(help="Folder of a model, an adapter or a run, a hub id, or SD3 Medium's folder or file.")
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    variant: Annotated[str | None, typer.Option(help="Of a public model: 384p, 768p or image.")] = None,
    vae: Annotated[str | None, typer.Option(help="Folder of a video VAE, where the model is SD3 Medium.")] = None,
    encoders: Annotated[
        str | None, typer.Option(help="Folder with text_encoder*/ and tokenizer*/, where the model is a single file.")
    ] = None,
    save_as: Annotated[Precision, typer.Option(help="Precision of the transformer's weights.")] = Precision.FP32,
    allow_pickle: Annotated[bool, typer.Option(help="Read pickled weights where there are no safetensors.")] = False,
    overwrite: OverwriteOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Write a model as a whole model folder: its adapter merged into it, or converted from SD3 Medium."""
    with one_line_errors(log_level), Display() as display:
        refuse_taken(out, "framegrove.json", overwrite)
        display.begin("reading the model")
        import torch

        from framegrove.config.model import ModelSource
        from framegrove.models.pretrained import load_source, save_pipeline

        source = ModelSource(name=model, variant=variant, vae=vae, encoders=encoders, allow_pickle=allow_pickle)
        pipeline = load_source(source)
        display.begin("writing it")
        types = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
        save_pipeline(pipeline, out, types[save_as])
        display.say(f"model: {out}")


if __name__ == "__main__":
    app()
