"""Examine a verifier of the digits world among siblings, by the oracle and on held-out prompts.

    python -m jobs.examine --verifier runs/verifier/model --model runs/digits/model --out runs/examination

The groups go to OUT shard by shard and serve for any verifier that is examined with the same OUT afterwards; figures go
to examination-NAME.json and .md. Interrupted, the same command resumes. With --record they also become part of the
verifier's README.md and metrics.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors

if TYPE_CHECKING:
    from framegrove.digits.examination import Examination

app = application()
_SEED = 11  # of prompts that nothing else is measured on
_HEADING = "\n## Among siblings\n"


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the groups and of the figures.")],
    verifier: Annotated[Path | None, typer.Option(help="A verifier's folder; the shipped one if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="Generator: a model folder; the shipped one if left out.")] = None,
    groups: Annotated[int, typer.Option(help="How many groups, rounded up to whole shards.", min=1)] = 600,
    units: Annotated[int, typer.Option(help="Length of the longest videos, in units.", min=1)] = 16,
    name: Annotated[str, typer.Option(help="Name of the figures' files.")] = "verifier",
    teacher: Annotated[
        Path | None, typer.Option(help="Weights of a teacher, whose agreement with the oracle is measured too.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Also into the verifier's README.md and metrics.json.")
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Examine a verifier among siblings, by the oracle, in this process and on one CPU thread."""
    with one_line_errors(log_level), Display() as display:
        make_folder(out)
        display.begin("sampling siblings")
        import torch

        from framegrove.digits.examination import agreement, examine, oracle_reader
        from framegrove.digits.oracle import DigitsOracle
        from framegrove.digits.sibling_files import keep_facts, read_groups, sample_shards, shards_in
        from framegrove.digits.teacher_training import taught
        from framegrove.digits.verifier_judge import Judge
        from framegrove.files import write_json
        from framegrove.models.pretrained import load_pipeline

        torch.set_num_threads(1)
        keep_facts(out, {"model": model or "shipped", "units": units, "seed": _SEED})
        judge = Judge(verifier)
        sample_shards(
            out,
            load_pipeline(model),
            oracle_reader(DigitsOracle()),
            split="heldout",
            groups=groups,
            units=units,
            seed=_SEED,
            on_groups=lambda done, total: display.show(done / total, f"{done} of {total} groups"),
        )
        sampled = [group for path in shards_in(out) for group in read_groups(path)]
        display.begin("judging siblings")
        found = examine(
            judge, sampled, lambda done: display.show(min(1.0, done / len(sampled)), f"{done} of {len(sampled)} groups")
        )
        facts: dict[str, Any] = {"verifier": str(verifier or "shipped"), "model": model or "shipped"} | found.figures()
        if teacher is not None:
            facts["teacher"] = agreement(taught(teacher), sampled)
            display.say(f"teacher: {facts['teacher']}")
        write_json(out / f"examination-{name}.json", facts)
        (out / f"examination-{name}.md").write_text(found.markdown() + "\n", encoding="utf-8")
        display.say(found.markdown())
        if record and verifier is not None:
            _record(verifier, found)


def _record(folder: Path, found: Examination) -> None:
    """Put the figures into the verifier's own README.md and metrics.json, in place of older ones."""
    from framegrove.files import replacing, write_json

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    write_json(folder / "metrics.json", metrics | {"siblings": found.figures()})
    text = (folder / "README.md").read_text(encoding="utf-8").split(_HEADING)[0]
    about = "Children of right parents, on held-out prompts and by the oracle, which no training sees:"
    with replacing(folder / "README.md") as partial:
        partial.write_text(f"{text}{_HEADING}\n{about}\n\n{found.markdown()}\n", encoding="utf-8")


if __name__ == "__main__":
    app()
