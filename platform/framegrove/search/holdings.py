"""What has been sampled of a search's branches: the handles by which it is reached, and the works that made it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from framegrove.search.tree import Latent
from framegrove.types import Path, SampleWork


class Maker(NamedTuple):
    """Who made a latent, by which work."""

    work: SampleWork
    worker: str


class Holdings:
    """The latents of one search that have been sampled and are not lost."""

    def __init__(self) -> None:
        self.handles: dict[Latent, Any] = {}
        self._of_branch: dict[Path, set[Latent]] = defaultdict(set)  # those in handles
        self._children: dict[Path, set[Path]] = defaultdict(set)  # of branches that were ever in handles
        self._makers: dict[Latent, Maker] = {}  # of lost ones too

    def put(self, latent: Latent, handle: Any, maker: Maker | None = None) -> None:
        """A latent is there. Nobody makes the given units."""
        self.handles[latent] = handle
        self._of_branch[latent.path].add(latent)
        self._children[latent.path[:-1]].add(latent.path)
        if maker is not None:
            self._makers[latent] = maker

    def lose(self, path: Path, handle: Any) -> list[Latent]:
        """A branch's handle leads nowhere any more. Returns what is lost: nothing if it has been replaced meanwhile."""
        lost = [latent for latent in self._of_branch[path] if self.handles[latent] is handle]
        for latent in lost:
            del self.handles[latent]
            self._of_branch[path].discard(latent)
        return lost

    def maker(self, latent: Latent) -> Maker | None:
        """Who made the latent, which may have been lost since."""
        return self._makers.get(latent)

    def made_by(self, latents: Iterable[Latent]) -> set[str]:
        """The workers that made these latents."""
        return {self._makers[latent].worker for latent in latents if latent in self._makers}

    def makers(self) -> dict[Latent, SampleWork]:
        """The works that made what is there."""
        return {latent: self._makers[latent].work for latent in self.handles if latent in self._makers}

    def branches(self, stage: int) -> set[Path]:
        """Those whose newest units are there, sampled up to and including ``stage``."""
        return {latent.path for latent in self.handles if latent.stage == stage}

    def of(self, path: Path) -> tuple[Latent, ...]:
        """What is there of a branch's newest unit."""
        return tuple(self._of_branch.get(path, ()))

    def below(self, path: Path) -> Iterator[Latent]:
        """What is there of a branch and of all that grew from it."""
        branches = [path]
        while branches:
            branch = branches.pop()
            branches += self._children.get(branch, ())
            yield from self.of(branch)
