"""What the verifier is worth: balanced accuracy on held-out clips, by aspect and kind of question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Idefics3ForConditionalGeneration

from framegrove.digits.verifier_codes import Codes, scene_codes
from framegrove.digits.verifier_model import Packer, answer_logits, read_cells, write_files
from framegrove.digits.verifier_questions import ask_about
from framegrove.digits.verifier_scenes import Quality, Scene, draw_scene
from framegrove.digits.verifier_sights import MOST
from framegrove.files import replacing, write_json
from framegrove.verification.views import View

if TYPE_CHECKING:
    from rich.table import Table

    from framegrove.digits.verifier_training import VerifierRun

_QUESTIONS = 12
_BATCH = 25
_SEED = 90210
_KINDS = ((View.VIDEO, 1), (View.VIDEO, 4), (View.VIDEO, MOST), (View.UNIT, MOST))


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers to one kind of question, out of how many."""

    right: float
    asked: int


@dataclass(frozen=True)
class VerifierMetrics:
    """Accuracy by (aspect, kind) of question, on clear and fair pictures.

    ``unclear`` has the share of right answers by aspect on all other pictures.
    """

    by_kind: dict[tuple[str, str], Accuracy]
    unclear: dict[str, float]

    def balanced(self, aspect: str, kind: str | None = None) -> float:
        """Mean of the accuracy on true statements and that on false ones: of one kind, or the mean of all kinds."""
        of_aspect = {k: accuracy.right for (a, k), accuracy in self.by_kind.items() if a == aspect}
        true = [right for k, right in of_aspect.items() if k == "true"]
        false = [right for k, right in of_aspect.items() if k != "true" and k == (kind or k)]
        return float(np.mean([np.mean(rights) for rights in (true, false) if rights]))

    @property
    def aspects(self) -> list[str]:
        """All aspects that were asked about, in alphabetical order."""
        return sorted({aspect for aspect, _ in self.by_kind})

    def figures(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "balanced_accuracy": {aspect: round(self.balanced(aspect), 4) for aspect in self.aspects},
            "by_kind": {
                f"{aspect}: {kind}": {"right": round(accuracy.right, 4), "asked": accuracy.asked}
                for (aspect, kind), accuracy in self.by_kind.items()
            },
            "unclear_pictures": {aspect: round(right, 4) for aspect, right in self.unclear.items()},
        }

    def table(self, title: str) -> Table:
        """For the terminal."""
        from rich.table import Table

        table = Table("question", "kind", "right", "asked", "balanced", title=title)
        for (aspect, kind), accuracy in sorted(self.by_kind.items()):
            balanced = self.balanced(aspect) if kind == "true" else self.balanced(aspect, kind)
            table.add_row(aspect, kind, f"{accuracy.right:.1%}", str(accuracy.asked), f"{balanced:.1%}")
        return table

    def markdown(self) -> str:
        """For a README."""
        lines = ["| question | kind | right | asked | balanced accuracy |", "| --- | --- | --- | --- | --- |"]
        for aspect in self.aspects:
            lines.append(f"| **{aspect}** | all | | | **{self.balanced(aspect):.1%}** |")
            for kind in sorted(k for a, k in self.by_kind if a == aspect):
                accuracy = self.by_kind[aspect, kind]
                balanced = "" if kind == "true" else f"{self.balanced(aspect, kind):.1%}"
                lines.append(f"| | {kind} | {accuracy.right:.1%} | {accuracy.asked} | {balanced} |")
        return "\n".join(lines)


def evaluate(
    model: Idefics3ForConditionalGeneration,
    packer: Packer,
    clips: int,
    *,
    codes: Codes | None = None,
    on_clips: Callable[[int], None] = lambda _: None,
) -> VerifierMetrics:
    """Ask about ``clips`` clips of held-out scans, a quarter each of one frame, four, six, and the view "unit".

    The number of clips is rounded up to whole batches of 25, and to 100 at least. With ``codes``, the text model is
    given the clips' own codes instead of pictures: its accuracy behind a perfect vision tower. ``on_clips`` is told how
    many are done.
    """

    def batches() -> Iterator[list[Scene]]:
        for number in range(max(4, -(-clips // _BATCH))):
            rng = np.random.default_rng([_SEED, number])
            view, shown = _KINDS[number % len(_KINDS)]
            yield [
                draw_scene(rng, shown=shown, view=view, split="heldout", painted=codes is None) for _ in range(_BATCH)
            ]
            on_clips((number + 1) * _BATCH)

    return _measured(model, packer, batches(), codes)


@torch.no_grad()
def _measured(
    model: Idefics3ForConditionalGeneration, packer: Packer, batches: Iterable[Sequence[Scene]], codes: Codes | None
) -> VerifierMetrics:
    by_kind: dict[tuple[str, str], list[bool]] = defaultdict(list)
    unclear: dict[str, list[bool]] = defaultdict(list)
    for number, scenes in enumerate(batches):
        rng = np.random.default_rng([_SEED, number, 1])
        asked = [ask_about(scene, rng, _QUESTIONS) for scene in scenes]
        shown = scenes[0].frames.shape[0]
        packed = packer.pack(shown, [[q.text for q in r] for r in asked], [[q.answer for q in r] for r in asked])
        if codes is None:
            cells = read_cells(model, torch.cat([scene.frames for scene in scenes]))
        else:
            cells = codes.embed(torch.cat([scene_codes(scene) for scene in scenes]))
        logits, *_ = answer_logits(model, cells.reshape(len(scenes), -1, cells.shape[-1]), packed)
        answers = (logits[..., packer.yes] > logits[..., packer.no]).tolist()
        for scene, row, given in zip(scenes, asked, answers, strict=True):
            for question, yes in zip(row, given, strict=True):
                if scene.quality is Quality.UNCLEAR and question.kind != "unclear":
                    unclear[question.aspect.value].append(yes == question.answer)
                else:
                    by_kind[question.aspect.value, question.kind].append(yes == question.answer)
    return VerifierMetrics(
        {key: Accuracy(float(np.mean(rights)), len(rights)) for key, rights in by_kind.items()},
        {key: float(np.mean(rights)) for key, rights in unclear.items()},
    )


def save(
    run: VerifierRun,
    model: Idefics3ForConditionalGeneration,
    heldout: VerifierMetrics,
    out: Path,
    command: str,
) -> None:
    """Write the model folder, rounded to bfloat16, with metrics.json and README.md, whole or not at all.

    ``command`` is the one that trains this verifier.
    """
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    figures: dict[str, Any] = {
        "command": command,
        "seconds": round(run.seconds),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "config": run.config.model_dump(),
        "held-out": heldout.figures(),
    }
    with replacing(out) as partial:
        write_files(model, run.tokenizer, run.config.model, partial)
        write_json(partial / "metrics.json", figures)
        (partial / "README.md").write_text(_readme(figures, heldout), encoding="utf-8")


def _readme(figures: Mapping[str, Any], heldout: VerifierMetrics) -> str:
    """The README of a trained verifier. ``figures`` has its command, the seconds that took and its parameters."""
    return f"""# The verifier of the digits world

A small Idefics3 ({figures["parameters"]:,} parameters, stored in bfloat16, served in float32) that answers yes/no
questions about up to {MOST} frames of a clip. Made by

    {figures["command"]}

in {figures["seconds"]:,} seconds on one CPU thread.

Balanced accuracy is the mean of the accuracy on true statements and that on false ones, each kind of false statement
having the same weight. On held-out clips (scans that no training clip shows, with faults like a generator's, on clear
and fair pictures):

{heldout.markdown()}

On pictures too blurred or noisy to be called clear, the share of right answers is
{", ".join(f"{aspect} {right:.1%}" for aspect, right in sorted(heldout.unclear.items()))}.
"""
