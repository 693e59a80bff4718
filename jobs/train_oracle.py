"""Train the oracle's digit network: ``python -m jobs.train_oracle --out DIR`` (about six minutes on one CPU thread)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import LogLevelOption, application, make_folder, one_line_errors

app = application()


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder that gets model.safetensors and metrics.json.")],
    seed: Annotated[int, typer.Option(help="Seed of data and weights.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps, 128 crops each.", min=1)] = 2500,
    log_level: LogLevelOption = None,
) -> None:
    """Train the digits oracle and measure it on true clips made from held-out scans."""
    from rich.console import Console
    from rich.progress import Progress
    from safetensors.torch import save_file

    from framegrove.digits.oracle import DigitsOracle
    from framegrove.digits.oracle_training import accuracy, train_oracle

    with one_line_errors(log_level):
        make_folder(out)
        started = time.monotonic()
        with Progress() as progress:
            task = progress.add_task("oracle", total=steps)
            network = train_oracle(
                seed=seed,
                steps=steps,
                on_step=lambda step, loss: progress.update(
                    task, completed=step, description=f"oracle, loss {loss:.3f}"
                ),
            )
        partial = out / "model.safetensors.partial"
        save_file(network.state_dict(), partial)
        partial.replace(out / "model.safetensors")
        oracle = DigitsOracle(out / "model.safetensors")
        metrics = {f"{n} digit": accuracy(oracle, seed=999, clips=200, digits_shown=n) for n in (1, 2)}
        command = f"python -m jobs.train_oracle --seed {seed} --steps {steps}"
        report: dict[str, object] = {"command": command, "held_out_accuracy": metrics}
        report["seconds"] = round(time.monotonic() - started)
        (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
        Console().print_json(data=report)


if __name__ == "__main__":
    app()
