"""Let a generator learn from its own searches: collect, train, look, again.

    python -m jobs.improve --config jobs/configs/digits_improve.yaml --out runs/improved

Each round searches for many prompts with the model of the round before (jobs.collect), trains on winners and pairs of
siblings (jobs.train), and holds the new model to a judge that no search saw: how right its unsearched videos are, how
much moves in them, how much they vary. The loop ends after `rounds` rounds, or as soon as the judge finds no gain.

Leaves in --out a folder for each round (collected/, run/, guards.jsonl, report.json), the best model in model/, and
report.json and improved.png over all rounds. Interrupted or killed, the same command resumes; nothing is searched for
or trained twice. Runs on the Ray cluster at RAY_ADDRESS, on the one that it was submitted to, or on a local one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from framegrove.config.improve import CollectConfig, GuardConfig, ImproveConfig
from jobs.console import Display, LogLevelOption, application, make_folder, one_line_errors
from jobs.keys import keys_help
from jobs.train import EngineName, in_this_process, on_a_cluster, range_of

if TYPE_CHECKING:
    from framegrove.config.train import TrainConfig

app = application()

_KEYS = keys_help(
    ("Keys of the configuration file, which --set overrides (--set rounds=1):", ImproveConfig, ""),
    ("Of what is searched for:", CollectConfig, "collect."),
    ("Of what holds a model to a judge:", GuardConfig, "guard."),
)


@app.command(epilog=_KEYS)
def main(
    config: Annotated[
        Path, typer.Option(help="YAML file, as jobs/configs/digits_improve.yaml; keys are listed below.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the loop; an unfinished one in it is resumed.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, as in rounds=1 (repeatable).")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="deepspeed: ZeRO over workers on a Ray cluster; plain: in this process.")
    ] = EngineName.DEEPSPEED,
    workers: Annotated[str, typer.Option(help="Workers that train, as of jobs.train: 4, or 2:8.")] = "1",
    generators: Annotated[int, typer.Option(min=1, help="Generator actors of the searches.")] = 2,
    searches: Annotated[int, typer.Option(min=1, help="Searches at a time.")] = 4,
    cache: Annotated[
        Path | None, typer.Option(help="Search over this folder of branches, in one process, as jobs.evaluate does.")
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Improve a generator by what its own searches find."""
    with one_line_errors(log_level), Display() as display:
        from framegrove.config.base import load
        from jobs.improving import BEST, PICTURE, REPORT, Loop

        range_ = range_of(engine, workers)
        checked = load(ImproveConfig, config, set_ or ())
        make_folder(out)

        def train(run: TrainConfig, folder: Path) -> Path:
            if engine is EngineName.PLAIN:
                return in_this_process(run, folder, 1, display)
            return on_a_cluster(run, folder.absolute(), range_, 1, 3, display)

        Loop(checked, out, train, generators, searches, cache, display).run()
        display.say("\n".join(str(out / name) for name in (REPORT, PICTURE, BEST) if (out / name).is_file()))


if __name__ == "__main__":
    app()
