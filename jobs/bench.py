"""Measure speed and memory side by side with plain implementations, in one run on this machine.

    python -m jobs.bench                                  # everything; some of it takes many minutes
    python -m jobs.bench --only jump,transformer --out runs/bench

Machines differ and are noisy, so what counts is the ratio of two implementations that took turns. Times are CPU time
on a CPU and CUDA events on a GPU, medians with the least and the largest in parentheses. Prints a table; with --out it
also writes bench.json.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.errors import UserError
from framegrove.files import write_json
from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.evaluation.benches import Finding

app = application()


class Bench(enum.StrEnum):
    """What can be measured."""

    JUMP = "jump"
    TRANSFORMER = "transformer"
    PACKING = "packing"
    MIXTURE = "mixture"
    FOOTAGE = "footage"
    OVERHEAD = "overhead"
    FAULTS = "faults"
    PREFIXES = "prefixes"
    PAIRS = "pairs"
    SAMPLING = "sampling"
    VAE = "vae"
    CONDUCTOR = "conductor"
    SHARING = "sharing"
    UNITS = "units"
    SPECULATION = "speculation"
    OVERLAP = "overlap"
    ASKING = "asking"
    ENDURANCE = "endurance"
    MEMORY = "memory"
    LOAD = "load"
    SURVIVAL = "survival"


@app.command()
def main(
    only: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(Bench)}.")] = ",".join(Bench),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for torch.")] = 2,
    repeats: Annotated[int, typer.Option(min=5, help="How many times each implementation is measured.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json; absent: only print.")] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run the benches and print their results."""
    with one_line_errors(log_level), Display() as display:
        chosen = _chosen(only)
        if out is not None:
            make_folder(out)
        # By default OpenMP's threads spin while they wait for each other, and on a busy machine the CPU time of that
        # exceeds the work's. OpenMP reads this when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import torch

        from framegrove.evaluation import (
            bench_conductor,
            bench_sharing,
            bench_speculation,
            bench_units,
            bench_vae,
            benches,
        )
        from jobs.benches.asking import asking
        from jobs.benches.endurance import endurance
        from jobs.benches.faults import faults
        from jobs.benches.footage import footage
        from jobs.benches.load import load
        from jobs.benches.memory import memory
        from jobs.benches.mixture import mixture
        from jobs.benches.overhead import overhead
        from jobs.benches.overlap import overlap
        from jobs.benches.packs import packs
        from jobs.benches.survival import survival

        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        measure = {
            Bench.JUMP: benches.jump,
            Bench.TRANSFORMER: benches.transformer,
            Bench.PACKING: packs,
            Bench.MIXTURE: mixture,
            Bench.FOOTAGE: footage,
            Bench.OVERHEAD: overhead,
            Bench.FAULTS: faults,
            Bench.PREFIXES: benches.prefixes,
            Bench.PAIRS: benches.pairs,
            Bench.SAMPLING: benches.sampling,
            Bench.VAE: bench_vae.vae,
            Bench.CONDUCTOR: bench_conductor.conductor,
            Bench.SHARING: bench_sharing.sharing,
            Bench.UNITS: bench_units.units,
            Bench.SPECULATION: bench_speculation.speculation,
            Bench.OVERLAP: overlap,
            Bench.ASKING: asking,
            Bench.ENDURANCE: endurance,
            Bench.MEMORY: memory,
            Bench.LOAD: load,
            Bench.SURVIVAL: survival,
        }
        findings: list[Finding] = []
        try:
            for bench in chosen:
                display.begin(f"measuring {bench}")
                findings += measure[bench](device, repeats)
        finally:  # what has been measured is not lost with what fails after it
            if findings:
                _print(findings, f"{device.type}, {threads} threads, torch {torch.__version__}", display)
            if findings and out is not None:
                _write(findings, out / "bench.json", display)


def _chosen(only: str) -> list[Bench]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Bench)]
    if unknown or not names:
        raise UserError(f"unknown bench {', '.join(unknown) or only!r} in --only: allowed are {', '.join(Bench)}")
    return [Bench(name) for name in names]


def _print(findings: list[Finding], where: str, display: Display) -> None:
    from rich.table import Table

    table = Table(title=where)
    for column in ("what", "ours", "plain", "ours / plain", "aim", ""):
        table.add_column(column, justify="left" if column == "what" else "right", overflow="fold")
    for finding in findings:
        ratio = "" if finding.plain is None else f"{finding.ours / finding.plain:.3f}"
        plain = "" if finding.plain is None else finding.shown(finding.plain, finding.plain_range)
        met = "" if finding.met is None else ("met" if finding.met else "missed")
        table.add_row(finding.what, finding.shown(finding.ours, finding.ours_range), plain, ratio, finding.aim, met)
    display.console.print(table)


def _write(findings: list[Finding], path: Path, display: Display) -> None:
    import dataclasses

    write_json(path, [dataclasses.asdict(finding) for finding in findings])
    display.say(str(path))


if __name__ == "__main__":
    app()
