"""Which options of jobs.evaluate go together, and which judges take no part in its searches."""

from __future__ import annotations

from collections.abc import Collection

from framegrove.config.verifier import PanelConfig, VerifierConfig, load_panel
from framegrove.errors import UserError
from jobs.console import refuse
from jobs.evaluations.laboratory import ORACLE


def check_together(given: Collection[str], judge: str, *, listed: bool) -> None:
    """Raise UserError for options that do not go together. ``listed``: the suite is a list of prompts."""
    given, cached = set(given), "cache" in given
    refuse(given & {"verifier_speed"} if not cached else (), "is for searches over a cache: add --cache DIR")
    if "suite_" in given and not listed:
        refuse(given & {"policies_", "budgets", "digits", "seed", "seeds"}, "is set by the suite: leave it out")
        if not cached:
            raise UserError("a suite is run over a cache of branches: add --cache DIR")
        refuse(given & {"calibrate", "judges", "distances"}, "is not for a suite: leave one of them out")
        refuse(given & {"overwrite"}, "is not for a suite, which takes days and always resumes: give another --out")
    if listed:
        of_digits = given & {"digits", "calibrate", "judges", "distances", "tuning"}
        refuse(of_digits, "applies only to prompts of the digits world: remove it, or --suite")
        if judge == ORACLE:
            raise UserError("the oracle knows the digits world alone: leave out --judge, or --suite")
    else:
        refuse(given & {"dimension", "weights"}, "is for VBench's prompts: add --suite vbench:FILE.json")
    if "suite_" in given:
        return
    refuse(given & {"tuning"}, "is for a suite: add --suite NAME")
    if "judges" in given:
        refuse(given & {"calibrate", "held_out", "distances", "seeds"}, "is not for --judges: leave one of them out")
        if cached == ("pairs" in given):
            raise UserError("--judges needs one reference: --cache DIR for the oracle, or --pairs FILE for people")
        if "pairs" in given:
            refuse(given - {"judges", "pairs", "out", "overwrite", "log_level"}, "is not for --pairs: leave it out")
    refuse(given & {"pairs"} if "judges" not in given else (), "is for judges: add --judges FILE")
    if "calibrate" in given:
        if not cached or judge == ORACLE:
            raise UserError("a panel is calibrated over a cache of branches: add --cache DIR, and leave out --judge")
        refuse(given & {"held_out", "distances", "seeds"}, "is not for --calibrate: leave one of them out")


def judges_apart(held_out: str | None, panel: PanelConfig) -> PanelConfig | None:
    """The judges beside the searches' own panel. Raises UserError for one that is of that panel."""
    if held_out is None:
        return None
    apart = load_panel(held_out)
    for each in apart.verifiers:
        if each.anchors:
            raise UserError(f"{each.name} compares videos and says nothing of one alone: leave it out of --held-out")
        if any(_model_of(each) == _model_of(own) for own in panel.verifiers):
            raise UserError(
                f"the judge held out, {each.name}, is one of the panel: give one that the search does not use"
            )
    return apart


def with_signals(held_out: str | None, panel: PanelConfig) -> PanelConfig | None:
    """The judges that take no part in a suite's searches: the ones given, and signals unless the panel has them."""
    chosen = judges_apart(held_out, panel)
    given = chosen.verifiers if chosen is not None else ()
    signals = (
        ()
        if any(each.kind == "signals" for each in (*panel.verifiers, *given))
        else (VerifierConfig(name="signals", kind="signals"),)
    )
    apart = (*given, *signals)
    return PanelConfig(verifiers=apart) if apart else None


def _model_of(config: VerifierConfig) -> tuple[object, ...]:
    """What tells a verifier's opinion from another's, however it is asked."""
    return config.kind, config.engine.model, config.endpoint, config.function, config.frames, config.latent
