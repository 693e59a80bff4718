"""Where the files of a pipeline lie: a folder or a repository of the hub, of which single files are fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from framegrove.config.model import hub_id
from framegrove.errors import UserError
from framegrove.files import fingerprint

INDEX = "model_index.json"


@dataclass(frozen=True)
class Place:
    """A folder, or a repository and, if one was named, its revision."""

    repo: str
    revision: str | None = None

    @classmethod
    def read(cls, where: str) -> Self:
        """The place that a user names. Raises UserError for what is neither a folder nor a hub id."""
        found = cls.find(where)
        if found is None:
            raise UserError(
                f"there is no model folder at {where}: give a folder that is there, or a hub id, owner/name"
            )
        return found

    @classmethod
    def find(cls, where: str) -> Self | None:
        """The same, and None for what is neither."""
        if Path(where).is_dir():
            return cls(where)
        found = hub_id(where)
        return cls(*found) if found is not None else None

    @property
    def called(self) -> str:
        """What a user calls it."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    def json(self, name: str) -> Mapping[str, Any]:
        """What stands in a JSON file. Raises UserError, in one sentence, where there is none to be had."""
        try:
            return dict(json.loads(self._file(name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.called} has no {name} that can be read ({error})") from None

    def identity(self) -> str:
        """Changes whenever the files do."""
        return self.commit() or fingerprint(Path(self.repo))

    def commit(self) -> str | None:
        """Of a repository, so that all actors read the same; None of a folder."""
        if Path(self.repo).is_dir():
            return None
        return self._file(INDEX).parent.name  # the hub's client names the folders of its cache by commits

    def has(self, name: str) -> bool:
        """Whether there is such a file; of a repository that cannot be reached, whether it was fetched before."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return self._found(name).is_file()
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return False

    def _file(self, name: str) -> Path:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return self._found(name)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).split("\n")[0]
            if isinstance(error, LocalEntryNotFoundError):
                reason = "the hub cannot be reached, and the file was not fetched before"
            raise UserError(
                f"{name} of {self.called} cannot be had ({reason}): give a folder that is there, or get the files first"
            ) from None

    def _found(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        if Path(self.repo).is_dir():
            return Path(self.repo) / name
        return Path(hf_hub_download(self.repo, name, revision=self.revision))
