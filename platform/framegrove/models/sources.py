"""Where the files of a model lie, given what a user calls it: the one place that every command asks.

A name is a model folder, a hub id, the folder of a run of jobs.train, an adapter (lora.py) on top of another model, or
SD3 Medium in its own layout (sd3.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from framegrove.config.model import ModelSource
from framegrove.config.train import CHECKPOINTS, MODEL, RAY_STATE, SHIPPED
from framegrove.errors import UserError
from framegrove.models import sd3
from framegrove.models.files import PICKLE_FILE, WEIGHTS_FILE, read_json
from framegrove.models.public import TRANSFORMER, local_folder, transformer_folder

VAE, RECIPE = "causal_video_vae", "framegrove.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_SAMPLE = 2**16  # bytes at either end of a file of weights by which it is told from others


@dataclass(frozen=True)
class Place:
    """The folders of a model's parts.

    ``transformer`` is a folder, or a single file of SD3's; ``text`` holds text_encoder*/ and tokenizer*/; ``adapters``
    are folders of adapters for the transformer, in the order in which they are applied.
    """

    folder: Path
    transformer: Path
    vae: Path
    text: Path
    adapters: tuple[Path, ...] = ()

    @property
    def is_sd3(self) -> bool:
        """Whether the transformer has to be converted."""
        return sd3.is_transformer(self.transformer)

    @property
    def files(self) -> tuple[Path, ...]:
        """All folders of the model: what it is depends on what stands in these."""
        return (self.folder, *self.adapters)


def embedded_model() -> Path:
    """The folder of the model that is shipped with the package."""
    return Path(str(resources.files("framegrove") / "assets" / "digits"))


def find_model(source: ModelSource) -> Place:
    """Where a model lies, downloaded if need be. Raises UserError where there is none."""
    if source.name is None:
        found = embedded_model()
    else:
        found = _model_of_run(local_folder(source.name, source.variant, allow_pickle=source.allow_pickle))
    if sd3.is_transformer(found) or sd3.is_transformer(found / sd3.FOLDER):
        return _sd3(source, found)
    if not found.is_dir():
        raise UserError(f"no model folder at {found}: give a folder that holds {TRANSFORMER}/, {VAE}/ and {RECIPE}")
    if (found / ADAPTER_CONFIG).is_file():
        return _with_adapter(source, found)
    if source.vae is not None or source.encoders is not None:
        raise UserError(f"{found} has a VAE and text encoders of its own: leave vae and encoders out")
    return Place(found, found / transformer_folder(found, source.variant), found / VAE, found)


def digest_of(source: ModelSource) -> str:
    """The same of whatever a source names. Raises UserError where it is not there."""
    return digest(find_model(source), allow_pickle=source.allow_pickle)


def digest(place: Place, *, allow_pickle: bool) -> str:
    """Tells the weights of a transformer from those of another: by the sizes and the ends of its files."""
    found = hashlib.blake2b(digest_size=12)
    files = _weight_files(place.transformer, allow_pickle)
    for path in (*files, *(folder / ADAPTER_WEIGHTS for folder in place.adapters)):
        size = path.stat().st_size
        found.update(f"{size} ".encode())
        with path.open("rb") as file:
            found.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            found.update(file.read())
    return found.hexdigest()


def _weight_files(transformer: Path, allow_pickle: bool) -> list[Path]:
    if transformer.is_file():
        return [transformer]
    kinds = ["*.safetensors", *(["*.bin"] if allow_pickle else [])]
    files = sorted(path for kind in kinds for path in transformer.glob(kind))
    if not files:
        raise UserError(f"{transformer} holds no weights: neither {WEIGHTS_FILE} nor, if it is allowed, {PICKLE_FILE}")
    return files


def _model_of_run(folder: Path) -> Path:
    """``folder``, or the model in it where it is the folder of a run."""
    if (folder / MODEL).is_dir():
        return folder / MODEL
    if (folder / CHECKPOINTS).is_dir() or (folder / RAY_STATE).is_dir():
        raise UserError(f"the run in {folder} has no {MODEL}/ yet: continue it until it has written one")
    return folder


def _with_adapter(source: ModelSource, folder: Path) -> Place:
    """The place of the model that an adapter is for, with the adapter."""
    if source.vae is not None or source.encoders is not None:
        raise UserError(f"{folder} is an adapter, whose model has its own VAE and encoders: leave vae and encoders out")
    path = folder / BASE
    given = (
        read_json(path) if path.is_file() else {"name": read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]}
    )
    if "name" not in given or (not path.is_file() and given["name"] is None):
        raise UserError(f"the adapter {folder} does not say which model it is for: name it in {path}")
    if source.variant not in (None, given.get("variant")):
        raise UserError(
            f"the adapter {folder} is for the variant {given.get('variant')!r}, not {source.variant!r}: leave that out"
        )
    base = ModelSource(
        **{key: given.get(key) for key in ("name", "variant", "vae", "encoders")}, allow_pickle=source.allow_pickle
    )
    try:
        place = find_model(base)
    except UserError as error:
        raise UserError(f"the model that the adapter {folder} is for cannot be used ({error}): see {path}") from None
    if "weights" in given and given["weights"] != digest(place, allow_pickle=source.allow_pickle):
        raise UserError(
            f"the adapter {folder} was trained on other weights than those in {place.transformer}: name the right "
            f"model in {path}"
        )
    return replace(place, adapters=(*place.adapters, folder))


def _sd3(source: ModelSource, found: Path) -> Place:
    """SD3 Medium's transformer, and the VAE and encoders that were named beside it."""
    if source.vae is None:
        raise UserError(
            f"{found} is SD3 Medium, which makes images through a VAE of images: train from it (jobs.train), with the "
            "folder of a video VAE as vae"
        )
    vae = embedded_model() / VAE if source.vae == SHIPPED else Path(source.vae)
    single = found.is_file()
    if single and source.encoders is None:
        raise UserError(
            f"{found} holds a transformer alone: name a folder with text_encoder*/ and tokenizer*/ (encoders)"
        )
    text = Path(source.encoders) if source.encoders is not None else found
    return Place(found, found if single else found / sd3.FOLDER, vae, text)
