"""Make a video for a prompt, searching for a good one.

    python -m jobs.generate --prompt "a red 3 moves left and right" --seed 1 --policy tof --budget 4x --out runs/red3

Leaves video.mp4, tree.png (the search tree: what lived, what was cut, and why), tree.html (the same for a browser, with
every branch to play) and report.json (costs by part, scores, timeline) in --out. With --watch the tree is drawn in the
terminal while it grows. Uses the Ray cluster at RAY_ADDRESS, or starts its own. What was interrupted continues where it
was by --resume and the same --out, or by the same arguments.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framegrove.config.base import absolute, load, validated
from framegrove.config.generate import GenerateConfig
from framegrove.config.pool import PoolSize
from framegrove.config.search import SearchConfig
from framegrove.config.verifier import load_panel
from framegrove.errors import UserError
from framegrove.files import write_json
from framegrove.search import policies
from framegrove.search.journal import JOURNAL
from framegrove.types import DEFAULT_POLICY
from jobs.console import (
    Display,
    DtypeOption,
    GeneratorsOption,
    LogLevelOption,
    ModelOption,
    OverwriteOption,
    PickleOption,
    VariantOption,
    VerifierOption,
    any_source,
    application,
    given_options,
    make_folder,
    one_line_errors,
    policy_help,
    refuse,
    refuse_finished,
    refuse_others_results,
    when_stopped,
)
from jobs.generating import Asked, bare_request, checked, multiple_of
from jobs.keys import keys_help
from jobs.writing import REPORT, WRITTEN, report_line, warn, write

if TYPE_CHECKING:
    from actors.searches import SearchRunner
    from framegrove.evaluation.report import SearchRecord
    from framegrove.types import GenerationRequest

app = application()
UNFINISHED = ".search"  # in --out: what a search that is not finished leaves
ASKED = "asked.json"

_KEYS = keys_help(
    ("Settings of a search, for --set (--set seconds=60):", SearchConfig, ""),
    *(
        (f"Of the policy {entry.name}:", entry.options, f"options.{entry.name}.")
        for entry in map(policies.find, policies.summaries())
        if entry.options.model_fields
    ),
)


@app.command(epilog=_KEYS)
def main(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for video.mp4, tree.png, tree.html, slide.png and report.json. Not needed for --plan."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the video should show.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the search that was interrupted in --out, with its own settings. Needs no prompt.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same video.")] = 0,
    policy: Annotated[str, typer.Option(help=f"How to search. {policy_help()}; or module:ENTRY.")] = DEFAULT_POLICY,
    budget: Annotated[
        str | None,
        typer.Option(help="Cap on the search, as a multiple of sampling and decoding once without one. Default: 4x."),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Stop at a video that the verifiers say is right with this probability. For linear, dfs and evo.",
        ),
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            help="Length: 1 + 8 (units - 1) frames; with --extend, 8 more for each. Default: the model's own."
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT. Default: the model's own.")] = None,
    image: Annotated[Path | None, typer.Option(help="PNG or JPEG file to begin with.")] = None,
    extend: Annotated[
        Path | None, typer.Option(help="Video file to continue: the video begins with it, and --units follow.")
    ] = None,
    model: ModelOption = None,
    variant: VariantOption = None,
    dtype: DtypeOption = "float32",
    allow_pickle: PickleOption = False,
    verifier: VerifierOption = None,
    generators: GeneratorsOption = "2",
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of settings, like the winners of jobs.sweep: those of a search, listed below, and "
            "guidance, steps, panel, units, model, variant, dtype, allow_pickle, verifier. Options override it.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A search setting, as in options.tof.roots=8; listed below.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw the search tree in the terminal while it grows.")
    ] = False,
    overwrite: OverwriteOption = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Print what the model needs and what the search may cost, without starting anything."
        ),
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Search for a video and write it with the picture of its search tree and a report."""
    with one_line_errors(log_level), Display() as display:
        _refuse_twice_told(set_ or ())
        if resume and overwrite:
            raise UserError("--resume continues a search, and --overwrite starts anew: leave one of them out")
        size_of_pool = PoolSize.option("--generators", generators)
        if out is None and not plan:
            raise UserError("--out is missing: name the folder of the video, or give --plan to start nothing")
        if resume and out is not None:
            own_settings = given_options(context) - {"resume", "out", "generators", "watch", "plan", "log_level"}
            refuse(own_settings, "is as it was when the search began: leave it out with --resume")
            asked = _interrupted(out)
        else:
            own = {
                "policy": policy,
                "budget": budget,
                "until": until,
                "units": units,
                "model": absolute(model),
                "variant": variant,
                "dtype": dtype,
                "allow_pickle": allow_pickle,
                "verifier": absolute(verifier),
            }
            asked = Asked(
                prompt=_given(prompt) if not plan else prompt or "any",
                seed=seed,
                size=size,
                image=absolute(str(image)) if image else None,
                extend=absolute(str(extend)) if extend else None,
                **_configured(own, config, context, set_ or ()),
            )
        if plan or out is None:
            _plan(asked, display)
            return
        _answer(asked, out, display, generators=size_of_pool, watch=watch, overwrite=overwrite)


def _configured(
    own: Mapping[str, Any], config: Path | None, context: typer.Context, settings: Sequence[str]
) -> dict[str, Any]:
    """Options as they were given, and where they were not, what a file of settings says; settings of both."""
    if config is None:
        return {**own, "set": tuple(settings)}
    said = load(GenerateConfig, config)
    told = said.model_dump(mode="json", exclude_unset=True)
    given = given_options(context)
    chosen = {name: value if name in given else told.get(name, value) for name, value in own.items()}
    of_search = [name for name in SearchConfig.model_fields if name in told and name not in own]
    return {
        **chosen,
        "set": (*(f"{name}={json.dumps(told[name])}" for name in of_search), *settings),
        **{name: told[name] for name in ("guidance", "steps", "panel") if name in told},
    }


def _plan(asked: Asked, display: Display) -> None:
    """Print what the model needs, and what a search of this budget may cost."""
    from actors.adapted import card_of
    from jobs.sampling_plan import show_plan

    entry = policies.find(asked.policy)
    budget = multiple_of(entry, asked.budget)
    policies.check_options(load(SearchConfig, None, asked.set), [entry])
    card = card_of(any_source(asked.model, asked.variant, asked.dtype, asked.allow_pickle))
    show_plan(card, bare_request(asked, card), budget, load_panel(asked.verifier), display)


def _answer(asked: Asked, out: Path, display: Display, *, generators: PoolSize, watch: bool, overwrite: bool) -> None:
    """Check what was asked for, search for it and write what comes out. Raises UserError for what cannot be done."""
    refuse_others_results(out, "a search")
    if not overwrite:
        _refuse_another(asked, out)
    task = checked(asked, display)
    _begin(asked, out, display, overwrite=overwrite)
    from actors.searches import search_runner

    runner = search_runner(task.source, task.panel, task.search, generators=generators)
    with when_stopped(f"resume it by python -m jobs.generate --resume --out {shlex.quote(str(out))}"):
        record = generate(runner, task.request, out, display, watch=watch)
    display.say("\n".join([report_line(record), *(str(out / name) for name in WRITTEN)]))
    warn(record)


def _begin(asked: Asked, out: Path, display: Display, *, overwrite: bool) -> None:
    """Keep what was asked for, for --resume; that of a search which goes on stays as it was first asked for."""
    if overwrite:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    make_folder(out / UNFINISHED)
    if _is_begun(out):
        display.say(f"resuming the search that was interrupted in {out}")
    else:
        write_json(out / UNFINISHED / ASKED, asked.model_dump(mode="json"))


def _is_begun(out: Path) -> bool:
    """Whether the folder has a search that was begun and is not finished."""
    return (out / UNFINISHED / ASKED).is_file() and (out / UNFINISHED / JOURNAL).is_file()


def _refuse_another(asked: Asked, out: Path) -> None:
    """Raise UserError where the folder has a finished search, or an interrupted one for something else.

    The settings of a search check themselves.
    """
    if not _is_begun(out):
        refuse_finished(out / REPORT, overwrite=False)
        return
    ours = asked.model_dump(mode="json")
    theirs = json.loads((out / UNFINISHED / ASKED).read_text(encoding="utf-8"))
    differs = next((key for key in ours if key != "set" and theirs.get(key) != ours[key]), None)
    if differs is not None:
        raise UserError(
            f"an interrupted search is in {out}, for which {differs} was {theirs.get(differs)!r} and not "
            f"{ours[differs]!r}: continue it by --resume, choose another --out, or replace it by --overwrite"
        )


def _given(prompt: str | None) -> str:
    if prompt is None:
        raise UserError("say what the video should show by --prompt, or continue an interrupted search by --resume")
    return prompt


def _interrupted(out: Path) -> Asked:
    """What was asked for in a folder whose search was interrupted."""
    file = out / UNFINISHED / ASKED
    if not file.is_file():
        raise UserError(f"there is no interrupted search in {out}: give the --out that it was started with")
    return validated(Asked, json.loads(file.read_text(encoding="utf-8")), str(file))


def generate(
    runner: SearchRunner, request: GenerationRequest, out: Path, display: Display, *, watch: bool = False
) -> SearchRecord:
    """Search on the cluster at RAY_ADDRESS, or an own one, and write what comes out into ``out``."""
    import asyncio

    from framegrove.cluster.session import connect
    from framegrove.types import Progress
    from jobs.live_tree import watching

    async def search() -> SearchRecord:
        def show(progress: Progress) -> None:
            display.show(progress.done, progress.note)

        try:
            judged = policies.find(request.policy).judged
            display.begin("starting generators" + (" and verifiers" if judged else ""))
            await runner.start(judging=judged)
            display.begin("searching" if judged else "sampling")
            if not watch:
                return await runner.search(request, show, journal=out / UNFINISHED)
            async with watching(display, request) as begin:
                return await runner.search(request, show, journal=out / UNFINISHED, watch=begin)
        finally:
            await runner.close()

    display.begin("connecting to Ray")
    with connect():
        record = asyncio.run(search())
    display.begin("drawing the tree")
    write(record, out)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return record


def _refuse_twice_told(settings: Iterable[str]) -> None:
    """Raise UserError for a setting that has an option of its own, whose value would win."""
    for name in (setting.partition("=")[0].strip() for setting in settings):
        if name in ("policy", "budget"):
            raise UserError(f"--set {name} has no effect here: give --{name}")


if __name__ == "__main__":
    app()
