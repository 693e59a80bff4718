"""The public Pyramid Flow checkpoints: where their parts lie, and what their files do not say.

DIR/diffusion_transformer_768p/   _384p/   _image/     DIR/causal_video_vae/
DIR/text_encoder/   text_encoder_2/   (text_encoder_3/)   and a tokenizer folder for each
"""

from __future__ import annotations

from pathlib import Path

from framegrove.config.flow import GuidanceConfig
from framegrove.config.model import Recipe, hub_id
from framegrove.errors import UserError
from framegrove.models.vae_files import Affine, LatentNorm

TRANSFORMER = "diffusion_transformer"
RELEASED = Recipe(
    guidance=GuidanceConfig(first=7.0, others=5.0, others_from_image=4.0),
    prompt_suffix=", hyper quality, Ultra HD, 8K",
    negative_prompt=(
        "cartoon style, worst quality, low quality, blurry, absolute black, absolute white, low res, extra limbs, "
        "extra digits, misplaced objects, mutated anatomy, monochrome, horror"
    ),
)
VARIANTS = {
    "diffusion_transformer_768p": RELEASED.model_copy(update={"height": 768, "width": 1280, "units": 31}),
    "diffusion_transformer_384p": RELEASED.model_copy(update={"height": 384, "width": 640, "units": 16}),
    "diffusion_transformer_image": RELEASED.model_copy(
        update={"height": 1024, "width": 1024, "units": 1, "guidance": GuidanceConfig(first=9.0)}
    ),
}
_VIDEO = Affine((-0.2343,), 1 / 3.0986)
RELEASED_NORMS = {
    "mmdit": LatentNorm(Affine((0.1490,), 1 / 1.8415), _VIDEO),
    "flux": LatentNorm(Affine((-0.04,), 1 / 1.8726), _VIDEO),
}
_ALWAYS = (
    *("framegrove.json", "causal_video_vae/*", "text_encoder*/*", "tokenizer*/*"),
    *("adapter_config.json", "adapter_model.safetensors", "base.json"),  # an adapter
    "transformer/*",  # SD3 Medium
)
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def transformer_folder(folder: Path, variant: str | None = None) -> str:
    """Name of the folder of a model's transformer: the asked for ("384p" will do), or the one of highest resolution.

    Raises UserError for a variant that is not there.
    """
    known = [name for name in (TRANSFORMER, *VARIANTS) if (folder / name).is_dir()]
    others = sorted(path.name for path in folder.glob(f"{TRANSFORMER}_*") if path.is_dir() and path.name not in known)
    present = known + others
    if variant is None:
        return present[0] if present else TRANSFORMER
    for name in (variant, f"{TRANSFORMER}_{variant}"):
        if name in present:
            return name
    raise UserError(f"{folder} has no variant {variant!r}: choose one of {', '.join(present) or 'none that is there'}")


def local_folder(model: str | Path, variant: str | None = None, *, allow_pickle: bool = False) -> Path:
    """The folder of a model given as a path, or as a hub id ("owner/name", "owner/name@revision") that is downloaded.

    Only what is needed comes along: one variant, and no pickles unless they are allowed. Raises UserError, in one
    line, for what is neither a folder nor to be had.
    """
    found = hub_id(model) if isinstance(model, str) else None
    if found is None:
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = (variant, f"{TRANSFORMER}_{variant}") if variant else (TRANSFORMER, next(iter(VARIANTS)))
    try:
        path = snapshot_download(
            found[0],
            revision=found[1],
            allow_patterns=[*(f"{name}/*" for name in wanted), *_ALWAYS],
            ignore_patterns=None if allow_pickle else list(_PICKLES),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).split("\n")[0]
        if isinstance(error, LocalEntryNotFoundError):
            reason = "the hub cannot be reached, and nothing of that name was fetched before"
        raise UserError(
            f"there is no model folder at {model}, and as a hub id, owner/name, it brings no model either ({reason}): "
            "give a folder that is there, or get the files first"
        ) from None
    return Path(path)
