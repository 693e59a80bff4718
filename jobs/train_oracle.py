"""Train the oracle's digit network and measure it on true clips of held-out scans.

    python -m jobs.train_oracle --out runs/oracle

leaves model.safetensors and metrics.json in OUT. Takes about six minutes on an idle CPU thread.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

app = application()
_MEASURED = 200  # clips with one and with two digits each


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and metrics.json; older ones are replaced.")],
    seed: Annotated[int, typer.Option(help="Seed of clips and initial weights.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps, each on 128 crops of digits.", min=1)] = 2500,
    log_level: LogLevelOption = None,
) -> None:
    """Train the oracle's digit network and measure it on true clips of held-out scans."""
    with one_line_errors(log_level), Display() as display:
        make_folder(out)
        display.begin("drawing clips")
        from safetensors.torch import save_file

        from framegrove.digits.oracle import DigitsOracle
        from framegrove.digits.oracle_training import CLIPS, accuracy, train_oracle
        from framegrove.files import replacing, write_json

        started = time.monotonic()

        def on_clips(done: int) -> None:
            display.show(done / CLIPS, f"{done} of {CLIPS}")
            if done == CLIPS:
                display.begin("training the oracle")

        def on_step(step: int, loss: float) -> None:
            display.show(step / steps, f"step {step} of {steps}, loss {loss:.3f}")

        network = train_oracle(seed, steps, on_clips, on_step)
        weights = out / "model.safetensors"
        with replacing(weights) as partial:
            save_file(network.state_dict(), partial)
        display.begin("measuring the oracle")
        oracle = DigitsOracle(weights)
        measured = {f"{n} digit": accuracy(oracle, seed=999, clips=_MEASURED, digits_shown=n) for n in (1, 2)}
        report = {
            "command": f"python -m jobs.train_oracle --seed {seed} --steps {steps} --out DIR",
            "held_out_accuracy": measured,
            "seconds": round(time.monotonic() - started),
            "clips": _MEASURED,
        }
        write_json(out / "metrics.json", report)
        for shown, shares in measured.items():
            listed = "  ".join(f"{name} {share:.1%}" for name, share in shares.items())
            display.say(f"read correctly in held-out clips, {shown}: {listed}")
        display.say(f"oracle: {weights}")


if __name__ == "__main__":
    app()
