"""What jobs.collect does: prompts in, searches over one pool of workers, winners and pairs of siblings out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import numpy as np

from framegrove.errors import UserError
from framegrove.words import counted
from jobs.evaluations.laboratory import Laboratory, side_by_side

if TYPE_CHECKING:
    from torch import Tensor

    from actors.model_files import ModelFiles
    from framegrove.config.model import ModelSource
    from framegrove.config.search import SearchConfig
    from framegrove.data.harvest import Crop
    from framegrove.data.schema import LatentClip, Rival
    from framegrove.evaluation.preferences import Preference
    from framegrove.evaluation.report import SearchRecord
    from framegrove.flow.sampler import StageLatent
    from framegrove.models.vae_files import LatentNorm
    from framegrove.search.fusion import LogP
    from framegrove.types import GenerationRequest, Path
    from jobs.console import Display

_DIGITS = "digits:"
BINS = (0.0, 1.0, 2.0, 4.0, float("inf"))  # of margins, in log-odds


@dataclass(frozen=True)
class Prompts:
    """Prompts with the seeds of their searches, read again whenever they are gone through; ``count`` of them.

    The seed of a prompt in a file follows from the prompt, so that lines may be added anywhere. Those of the digits
    world have ``digits`` digits, in turn (none: one or two, at random).
    """

    count: int
    seed: int
    file: File | None = None
    digits: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        if self.file is not None:
            for prompt in _lines(self.file):
                yield prompt, self.seed + int.from_bytes(digest(prompt)[:4], "big")
            return
        from framegrove.digits import world

        in_turn = itertools.cycle(self.digits or (None,))
        for index, digits in zip(range(self.count), in_turn, strict=False):
            objects = world.prompt(self.seed, index, digits=digits, split="train")
            yield world.caption(objects), self.seed + index


def search_config(policy: str, budget: object, settings: Iterable[str] = ()) -> SearchConfig:
    """How searches are made that leave something to learn from, with further settings of the form ``key=value``."""
    from framegrove.config.base import load
    from framegrove.config.search import SearchConfig

    # What is sampled ahead to save time would only be wasted: there is always another search with work to do.
    return load(SearchConfig, None, ["speculate=off", *settings, f"policy={policy}", f"budget={budget}"])


def are_digits(spec: str) -> bool:
    """Whether prompts are of the digits world."""
    return spec.startswith(_DIGITS)


def read_prompts(spec: str, seed: int, digits: Sequence[int] = ()) -> Prompts:
    """The prompts of a file, or those of digits:N, see `Prompts`. Raises UserError where there are none."""
    if are_digits(spec):
        number = spec.removeprefix(_DIGITS)
        if not number.isdecimal() or not int(number):
            raise UserError(f"--prompts {spec}: write how many prompts of the digits world, as in {_DIGITS}500")
        return Prompts(int(number), seed, digits=tuple(digits))
    file = File(spec)
    try:
        count = sum(1 for _ in _lines(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no prompts can be read from {file} ({reason}): give a text file, or {_DIGITS}N") from None
    if not count:
        raise UserError(f"{file} has no prompt in it: write one a line")
    return Prompts(count, seed, file)


def _lines(file: File) -> Iterator[str]:
    """The lines of a file that say something, each once, in order; of long files only digests are kept."""
    seen: set[bytes] = set()
    with file.open(encoding="utf-8") as text:
        for line in text:
            prompt = " ".join(line.split())
            if prompt and (mark := digest(prompt)) not in seen:
                seen.add(mark)
                yield prompt


def digest(text: str) -> bytes:
    """Tells a text from others."""
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


@dataclass(frozen=True, eq=False)
class CollectingTask:
    """What is searched for, and what of it is kept.

    ``vae`` is the digest of the model's VAE, whose latents ``norm`` scales, ``made_by`` that of the model itself.
    """

    prompts: Prompts
    files: ModelFiles
    search: SearchConfig
    units: int
    seed: int
    margin: float
    least: float
    most: float
    norm: LatentNorm
    vae: str
    made_by: str

    @property
    def last_stage(self) -> int:
        """The stage at which units are finished."""
        return self.files.recipe.pyramid.stages - 1

    @classmethod
    def of(
        cls,
        source: ModelSource,
        search: SearchConfig,
        prompts: Prompts,
        *,
        units: int | None,
        seed: int,
        margin: float,
        least: float,
        most: float,
    ) -> CollectingTask:
        """Read the model. Raises UserError where it is not there, or cannot make such videos."""
        from actors.model_files import ModelFiles
        from framegrove.models.pretrained import load_vae_of
        from framegrove.models.sources import digest_of
        from framegrove.training.encode import vae_digest

        files = ModelFiles.read(source)
        vae, norm = load_vae_of(files.place, allow_pickle=source.allow_pickle)
        length = units or files.recipe.units
        return cls(
            prompts, files, search, length, seed, margin, least, most, norm, vae_digest(vae), digest_of(files.source)
        )

    def requests(self) -> Iterator[GenerationRequest]:
        """One for each prompt."""
        from framegrove.types import GenerationRequest

        recipe = self.files.recipe
        for prompt, seed in self.prompts:
            yield GenerationRequest(
                prompt=prompt,
                seed=seed,
                units=self.units,
                height=recipe.height,
                width=recipe.width,
                policy=self.search.policy,
                budget=self.search.multiple,
            )


def collect(task: CollectingTask, lab: Laboratory, out: File, display: Display) -> Findings:
    """Make the searches that are missing in ``out``, and keep what they leave; returns what all of them left."""
    from framegrove.data.harvest import harvesting

    task.files.check(next(task.requests()))
    facts = lab.run(lab.runner.identity(task.search))
    facts |= {"units": task.units, "seed": task.seed, "margin": task.margin, "least": task.least}
    if task.most < 1:  # not named otherwise, as in collections from before it could be
        facts["most"] = task.most
    with harvesting(out, task.vae, task.made_by, facts) as harvest:
        count = sum(key(request) not in harvest.done for request in task.requests())
        wanted = (request for request in task.requests() if key(request) not in harvest.done)
        made = 0

        async def one(request: GenerationRequest) -> None:
            nonlocal made
            display.show(made / count, f"{made} of {count}: {request.prompt}")
            record = await lab.runner.search(request, whole=True)
            harvest.add(crop_of(task, lab.panel.log_p, record, await lab.runner.latents(record)))
            made += 1

        if count:
            display.begin("connecting to the workers")
            with lab.connected():
                lab.run(side_by_side(lab, wanted, one, display, f"searching for {counted(count, 'prompt')}"))
        return Findings(list(harvest.done.values()))


def key(request: GenerationRequest) -> str:
    """Tells a search from the others of a collection."""
    return digest(f"{request.seed} {request.prompt}").hex()


def crop_of(task: CollectingTask, log_p: LogP, record: SearchRecord, latents: Mapping[Path, StageLatent]) -> Crop:
    """What is kept of a finished search, with the latents of its branches."""
    from framegrove.data.harvest import Crop
    from framegrove.evaluation import preferences
    from framegrove.types import prefixes

    outcome, name = record.outcome, key(record.request)
    units = {path: task.norm.denormalise(each.x, len(path) - 1) for path, each in latents.items()}
    usable = {path for path in units if all(prefix in units for prefix in prefixes(path))}
    found = preferences.comparisons(outcome.nodes, log_p, usable)
    kept = preferences.told_apart(found, task.margin, task.least, task.most)
    (winner,) = (node for node in outcome.nodes if node.path == outcome.winner)
    # A search that ends at its cap may have sampled its winner last, and nobody has judged that.
    chance = preferences.chance_of(*winner.scores[-1], log_p) if winner.scores else None
    pairs = [_pair(task, record, each, units, name) for each in kept]
    is_good = chance is not None and chance >= task.least
    won = [_clip(record, winner.path, units, name)] if is_good and winner.path in usable else []
    price = outcome.sampling.spent + outcome.scoring.spent
    compared = [(len(each.better) - 1, round(each.margin, 4), each in kept) for each in found]
    facts = {"chance": chance, "flops": price.all_flops, "seconds": outcome.seconds, "compared": compared}
    return Crop(name, won, pairs, facts)


def _clip(
    record: SearchRecord,
    path: Path,
    units: Mapping[Path, Tensor],
    name: str,
    rival: Rival | None = None,
    against: Path = (),
) -> LatentClip:
    import torch

    from framegrove.data.schema import LatentClip, clip_id
    from framegrove.types import prefixes

    request = record.request
    latents = torch.cat([units[prefix] for prefix in prefixes(path)], dim=1)
    return LatentClip(
        id=clip_id(name, 0.0, f"{path} {against}"),
        caption=request.prompt,
        height=request.height,
        width=request.width,
        fps=record.fps,
        latents=latents.numpy().astype(np.float16),
        source=name,
        caption_source="search",
        rival=rival,
    )


def _pair(
    task: CollectingTask, record: SearchRecord, each: Preference, units: Mapping[Path, Tensor], name: str
) -> LatentClip:
    from framegrove.data.schema import Rival

    rival = Rival(units[each.worse].numpy().astype(np.float16), each.chances, task.last_stage, each.cut, each.scores)
    return _clip(record, each.better, units, name, rival, each.worse)


@dataclass(frozen=True, eq=False)
class Findings:
    """What all searches of a collection have left, from their lines in its list."""

    lines: Sequence[Mapping[str, Any]]

    @property
    def searches(self) -> int:
        """How many there were."""
        return len(self.lines)

    @property
    def examples(self) -> int:
        """Winners that were kept."""
        return sum(len(line["examples"]) for line in self.lines)

    @property
    def pairs(self) -> int:
        """Pairs that were kept."""
        return sum(len(line["pairs"]) for line in self.lines)

    @property
    def compared(self) -> list[tuple[int, float, bool]]:
        """Depth, margin and whether it was kept, of all pairs of siblings that were compared."""
        return [(depth, margin, kept) for line in self.lines for depth, margin, kept in line["compared"]]

    @property
    def flops(self) -> float:
        """What all searches took."""
        return float(sum(line["flops"] for line in self.lines))

    @property
    def seconds(self) -> float:
        """What they took together, each from its beginning to its end; several go on at a time."""
        return float(sum(line["seconds"] for line in self.lines))

    def by_depth(self) -> list[tuple[int, int, int, tuple[int, ...]]]:
        """For each depth: pairs compared, pairs kept, and how many margins lie between any two of `BINS`."""
        compared = self.compared
        return [
            (
                depth,
                len(margins := [margin for at, margin, _ in compared if at == depth]),
                sum(kept for at, _, kept in compared if at == depth),
                tuple(np.histogram(margins, BINS)[0].tolist()),
            )
            for depth in sorted({at for at, _, _ in compared})
        ]

    def summary(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        columns = ("unit", "compared", "kept", "margins")
        return {
            "searches": self.searches,
            "examples": self.examples,
            "pairs": self.pairs,
            "compared": len(self.compared),
            "flops": self.flops,
            "seconds": self.seconds,
            "margin_bins": [*BINS[:-1], None],
            "by_unit": [dict(zip(columns, row, strict=True)) for row in self.by_depth()],
        }
