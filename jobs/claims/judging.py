"""Claims about who judges, and what is asked when: a panel, staged prompts, the image chain-of-thought (VT1 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from framegrove.config.suite import Setting
from jobs.claims import searching
from jobs.claims.claim import Bench, Claim, Figure, Finding
from jobs.claims.searching import Rows, best_of, right, score

if TYPE_CHECKING:
    from framegrove.config.verifier import PanelConfig

_PAIR = Path(__file__).parents[1] / "configs" / "verifiers_digits_pair.yaml"
_VIDEOS = 4
_JUDGES = {"verifier": ("verifier",), "teacher": ("teacher",), "both": ("verifier", "teacher")}
_BUDGET = 4.0  # samples
_STAGED, _UNSTAGED = "staged", "unstaged"
_WITH, _WITHOUT = "with previews", "without"


def panel(bench: Bench) -> Finding:
    """Best of 4 by each verifier alone and by both."""
    from framegrove.config.verifier import load_panel

    settings = [best_of(_VIDEOS).model_copy(update={"label": name, "panel": who}) for name, who in _JUDGES.items()]
    rows = searching.measured(bench, "panel", settings, load_panel(str(_PAIR)))
    better = max(("verifier", "teacher"), key=lambda name: (rows.mean(name, right).mean, rows.mean(name, score).mean))
    gain = rows.minus("both", better, right).difference
    figures = [Figure.of(f"fully right, by {name}", rows.mean(name, right)) for name in _JUDGES]
    figures += [Figure.of(f"oracle score, by {name}", rows.mean(name, score)) for name in _JUDGES]
    headline = "fully right, both minus the better of the two"
    figures += [Figure.of(headline, gain), Figure.of("cost, by both", rows.cost("both"), "samples")]
    title = f"A panel beside its members: best of {_VIDEOS}"
    remarks = (f"the better of the two is the {better}",)
    return Finding(
        tuple(figures),
        headline,
        gain.mean > 0,
        lambda path: draw(dict.fromkeys(_JUDGES, rows), path, title),
        remarks,
    )


def staged(bench: Bench) -> Finding:
    """Tree-of-Frames, asked of each depth what concerns it, and asked everything at every depth."""
    asked = {
        _STAGED: searching.measured(bench, _STAGED, [_tree(_STAGED)], _asking(None)),
        _UNSTAGED: searching.measured(
            bench, _UNSTAGED, [_tree(_UNSTAGED)], _asking("framegrove.digits.unstaged_questions:UNSTAGED")
        ),
    }
    remarks = (
        "both cap the same total FLOPs, so that more questions leave fewer branches",
        "captions of the digits world name no ending, so that what is staged is what is asked about, not the sentence",
        "ranks fuse the scores, as published: the unstaged questions need no calibration of their own",
    )
    return _beside(asked, _STAGED, _UNSTAGED, "Staged or unstaged questions: Tree-of-Frames, 4x", remarks)


def chain_of_thought(bench: Bench) -> Finding:
    """Tree-of-Frames with and without the look at half-denoised first units."""
    both = [_tree(_WITH), _tree(_WITHOUT, draft_stages=0)]
    rows = searching.measured(bench, "previews", both, _asking(None))
    title = "The image chain-of-thought, on and off: Tree-of-Frames, 4x"
    remarks = (
        "on: first units are sampled at the coarse stages, previewed, and cut before they are refined; off: all are "
        "refined; both cap the same total FLOPs",
    )
    return _beside({_WITH: rows, _WITHOUT: rows}, _WITH, _WITHOUT, title, remarks)


def _tree(label: str, **options: object) -> Setting:
    return Setting(label=label, policy="tof", budget=_BUDGET, options=options)


def _asking(questions: str | None) -> PanelConfig:
    """The shipped verifier, asked its own questions or others."""
    from framegrove.config.verifier import PanelConfig

    own = PanelConfig()
    if questions is None:
        return own
    (verifier,) = own.verifiers
    return PanelConfig(verifiers=(verifier.model_copy(update={"questions": questions, "calibration": {}}),))


def _beside(asked: Mapping[str, Rows], on: str, off: str, title: str, remarks: tuple[str, ...]) -> Finding:
    """Two settings that differ in one thing, the aim being that it does not harm at no more cost."""
    together = Rows([row for label in (on, off) for row in asked[label].rows if str(row.setting) == label])
    gain, gain_score = (together.minus(on, off, metric).difference for metric in (right, score))
    figures = [Figure.of(f"fully right, {label}", together.mean(label, right)) for label in (on, off)]
    figures += [Figure.of(f"oracle score, {label}", together.mean(label, score)) for label in (on, off)]
    figures += [Figure.of(f"cost, {label}", together.cost(label), "samples") for label in (on, off)]
    headline = f"fully right, {on} minus {off}"
    figures += [Figure.of(headline, gain), Figure.of(f"oracle score, {on} minus {off}", gain_score)]
    return Finding(
        tuple(figures), headline, gain.mean > 0, lambda path: draw({on: together, off: together}, path, title), remarks
    )


def draw(rows: Mapping[str, Rows], path: Path, title: str) -> None:
    """A bar for each setting, of fully right videos and of the oracle's score, with what it costs."""
    from framegrove.evaluation.figures import save
    from jobs.claims.drawing import bars, canvas, dress

    prompts = len(next(iter(rows.values())).of(next(iter(rows)), right))
    figure, (axes,) = canvas(title=f"{title}, {prompts} prompts")
    named = [f"{label}\n{each.cost(label).mean:.2f} samples" for label, each in rows.items()]
    metrics = {"fully right": right, "oracle score": score}
    kinds = {name: [each.mean(label, metric) for label, each in rows.items()] for name, metric in metrics.items()}
    bars(axes, named, kinds)
    axes.set_ylim(0, 1.12)
    dress(axes, x="", y="by the oracle")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    save(figure, path)


CLAIMS = (
    Claim(
        name="panel",
        question="Is a panel of verifiers better than its best member, for the same videos?",
        source="VT1 equation 7: fused ranks of several verifiers beat any single one at equal NFE",
        measured=f"best of {_VIDEOS} by the shipped verifier, by the digits teacher and by both, two digits, 8 units",
        aim="both are fully right more often than the better of the two (mean)",
        takes="15 min for 24 prompts, 3 where scaling was measured in the same folder",
        run=panel,
        missing="100 prompts of 16 units are in tests/evidence/RESULTS.md (suite digits-panel)",
        prompts=24,
    ),
    Claim(
        name="staged-prompts",
        question="Does it help to ask of a video's beginning, middle and end what concerns each?",
        source="VT1 section 3.3, hierarchical prompts",
        measured="Tree-of-Frames at 4x with the shipped questions of each depth, and with those about the whole video "
        "asked at every depth",
        aim="fully right more often with staged questions (mean), for the same cap of FLOPs",
        takes="30 min for 24 prompts",
        run=staged,
        missing="rewriting by a language model: captions of the digits world need none",
        prompts=24,
    ),
    Claim(
        name="chain-of-thought",
        question="Does judging half-denoised first units, and cutting there, help?",
        source="VT1 section 3.3, image chain-of-thought",
        measured="Tree-of-Frames at 4x with drafts of first units (POTENTIAL) and without",
        aim="fully right more often with previews (mean), for the same cap of FLOPs",
        takes="30 min for 24 prompts, 15 where staged-prompts was measured in the same folder",
        run=chain_of_thought,
        missing="the published two questions (clear enough? has potential?): the shipped verifier is asked one set",
        prompts=24,
    ),
)
