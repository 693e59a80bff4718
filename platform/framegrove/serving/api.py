"""Requests and answers in the format of the OpenAI Videos API, extended by how to search."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from framegrove.config.base import describe, problems_of, validating
from framegrove.config.request import check_prompt, parse_size
from framegrove.config.search import parse_budget
from framegrove.errors import UserError
from framegrove.types import DEFAULT_POLICY, Assessment

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
Variant = Literal["video", "thumbnail", "spritesheet", "tree"]

LARGEST_SEED = 2**63 - 1  # the largest integer that SQLite stores
LARGEST_DRAWN = 2**53 - 1  # the largest integer that JavaScript holds exactly
POLL_AFTER_MS = 1000  # how soon it is worth asking again for a video that is being made
LATENTS = "latents.safetensors"  # what a video can be gone on from
VARIANTS: dict[Variant, str] = {
    "video": "video.mp4",
    "thumbnail": "thumbnail.webp",
    "spritesheet": "spritesheet.webp",
    "tree": "tree.png",
}
MOST_IMAGE_BYTES = 8 * 2**20
MOST_CLIP_BYTES = 24 * 2**20
_IMAGE_URLS = ("data:image/png;base64", "data:image/jpeg;base64", "data:image/webp;base64")
_CLIP_URLS = ("data:video/mp4;base64", "data:video/webm;base64", "data:video/quicktime;base64")


class ApiError(UserError):
    """A request that is refused: the HTTP status, and one sentence for the caller.

    ``param`` is the request's field that is to blame, ``code`` a fixed word that a client can act on.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param and param.encode("utf-8", "replace").decode()  # a field's name may hold half a character
        self.code = code

    def body(self) -> dict[str, Any]:
        """The response body, in the format that OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _sized(text: str) -> str:
    height, width = parse_size(text)
    return f"{width}x{height}"


def _negative(text: str) -> str:
    return check_prompt(text) if text.strip() else ""


def _few(values: dict[str, str]) -> dict[str, str]:
    if len(values) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in values.items()):
        raise ValueError("metadata has up to 16 keys of up to 64 characters, and values of up to 512")
    return values


def _budgeted(text: str) -> str:
    return f"{parse_budget(text):g}x"


def _as_text(given: Any) -> Any:
    """A number as a string where the API has strings: ``"seconds": 3`` means ``"seconds": "3"``."""
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)  # the format g turns an integer into a float first, which not all of them fit into
    return f"{given:g}" if isinstance(given, float) else given


def _as_weights(given: Any) -> Any:
    """Verifiers that are only named, as a list or in one string with commas, count as they do by themselves."""
    if isinstance(given, str):  # in a form
        given = [name.strip() for name in given.split(",")]
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        return dict.fromkeys(given, 1.0)
    return given


def _seconds(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{text[:20]!r} is not a number of seconds, such as 3 or 2.5") from None
    if not 0 < value < 1e6:
        raise UserError(f"a video lasts more than 0 and less than 1,000,000 seconds, not {value:g}")
    return f"{value:g}"


Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class Search(BaseModel):
    """How to search for the video."""

    model_config = ConfigDict(extra="forbid")

    policy: str = Field(default=DEFAULT_POLICY, description="the search policy, one of those that the endpoint offers")
    budget: Annotated[str, BeforeValidator(_as_text), AfterValidator(validating(_budgeted))] | None = Field(
        default=None,
        description='the compute, in multiples of the FLOPs of one unsearched sample, such as "4x"; the endpoint\'s '
        "default if absent",
    )
    until: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="the probability of being right, by the verifiers, at which a policy that can stop does so; the "
        "policy's own if absent",
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="the longest to search, in seconds from when the search begins: shortly before they are up, the "
        "most promising branch is finished; no limit if absent",
    )
    speculation: Literal["latency", "thrift", "off"] | None = Field(
        default=None, description="how much is done ahead on workers that would idle; the endpoint's own if absent"
    )
    options: dict[str, Any] = Field(
        default={}, description='options of the policy, such as {"accept": 0.9}; GET /v1/models lists them'
    )
    verifiers: Annotated[dict[str, Weight] | None, BeforeValidator(_as_weights)] = Field(
        default=None,
        min_length=1,
        description="the verifiers that judge, by name, each with how many times its own weight it counts, such as "
        '{"verifier": 1, "signals": 0.5}, or a list of names; all as they are if absent. GET /v1/models lists them',
    )


def _as_reference(given: Any) -> Any:
    """What was given, unless it refers to an image in a way that only other services understand."""
    if isinstance(given, str):
        raise ValueError('input_reference must be a section such as {"image_url": "data:image/png;base64,..."}')
    if isinstance(given, dict) and "file_id" in given:
        raise ValueError("input_reference.file_id means nothing here, where no files are kept: send the image itself")
    return given


class ImageReference(BaseModel):
    """The video's first frame."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(
        description="a data URL that holds a PNG, JPEG or WebP in base64; other addresses are not fetched"
    )

    def image(self) -> bytes:
        """The image file's bytes. Raises ApiError if this is no such data URL, or the image is too large."""
        return _bytes_of(self.image_url, "input_reference.image_url", _IMAGE_URLS, MOST_IMAGE_BYTES)


def _bytes_of(url: str, field: str, heads: tuple[str, ...], most: int) -> bytes:
    """What a data URL holds. Raises ApiError for one with none of these heads, or with more than ``most`` bytes."""
    param = field.partition(".")[0]
    head, comma, data = url.partition(",")
    if not comma or head.lower() not in heads:
        raise ApiError(
            400,
            f"{field} must be a data URL that begins with {', or '.join(heads)},: other addresses are not fetched",
            param=param,
        )
    if len(data) > most * 4 // 3:
        raise ApiError(413, f"the file in {field} is larger than {most // 2**20} MiB", param=param)
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:  # binascii.Error is one, and so is what characters beyond ASCII lead to
        raise ApiError(
            400,
            f"{field} is not valid base64: use the letters A-Z, a-z, 0-9, + and /, with = at the end, and no white "
            "space",
            param=param,
        ) from None


class VideoRequest(BaseModel):
    """The body of POST /v1/videos."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "a red 3 moves left and right", "seconds": "3", "search": {"budget": "4x"}}]
        },
    )

    prompt: Annotated[str, AfterValidator(validating(check_prompt))] = Field(description="what the video shows")
    negative_prompt: Annotated[str, AfterValidator(validating(_negative))] | None = Field(
        default=None, description="what guidance leads away from; the model's own if absent, none if empty"
    )
    model: str | None = Field(default=None, description="the name of the served model, if given")
    seconds: Annotated[str, BeforeValidator(_as_text), AfterValidator(validating(_seconds))] | None = Field(
        default=None, description='how long the video lasts, in seconds, such as "3"; the model\'s if absent'
    )
    num_frames: int | None = Field(default=None, ge=1, le=100_000, description="how many frames it has, instead")
    fps: Annotated[float, Field(ge=0.1, le=240)] | None = Field(
        default=None,
        description="frames a second at which it plays; the model's if absent. Another rate plays the same frames "
        "faster or slower",
    )
    size: Annotated[str, AfterValidator(validating(_sized))] | None = Field(
        default=None, description='WIDTHxHEIGHT in pixels, such as "64x64"; the model\'s if absent'
    )
    width: int | None = Field(default=None, ge=1, le=99_999, description="in pixels; with height, instead of size")
    height: int | None = Field(default=None, ge=1, le=99_999, description="in pixels; with width, instead of size")
    size_policy: Literal["exact", "nearest"] = Field(
        default="exact", description="whether a size that the model cannot make is refused, or the nearest is taken"
    )
    seed: Annotated[int, Field(ge=-1, le=LARGEST_SEED)] | None = Field(
        default=None,
        description="the same request with the same seed gives the same video; drawn at random if absent or -1",
    )
    num_inference_steps: int | None = Field(
        default=None, ge=1, le=1000, description="denoising steps at each stage of each unit; the model's if absent"
    )
    guidance_scale: float | None = Field(
        default=None, ge=0, le=100, description="how strongly the prompt leads; the model's if absent"
    )
    n: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="how many videos, with the seeds seed, seed + 1 and so on: all are accepted or none. The answer is "
        "the first, whose field batch names them all",
    )
    user: str | None = Field(default=None, max_length=256, description="whom the caller asks for; kept, and not used")
    metadata: Annotated[dict[str, str], AfterValidator(_few)] = Field(
        default={}, description="up to 16 values of the caller's own, kept with the video"
    )
    search: Search = Search()
    input_reference: Annotated[ImageReference, BeforeValidator(_as_reference)] | None = Field(
        default=None, description="the first frame"
    )


class RemixRequest(BaseModel):
    """The body of POST /v1/videos/{id}/remix: the same video for another prompt."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, AfterValidator(validating(check_prompt))] = Field(description="what the video shows instead")


class VideoReference(BaseModel):
    """What to go on from: an earlier video by its ``id``, or a clip in a data URL; one of the two."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(default=None, max_length=64, description="the id of a completed video")
    video_url: str | None = Field(
        default=None,
        description="a data URL that holds an MP4, WebM or MOV file in base64; other addresses are not fetched",
    )

    def clip(self) -> bytes | None:
        """The bytes of the clip's file; None where an earlier video is named. Raises ApiError for neither and both."""
        if (self.id is None) == (self.video_url is None):
            raise ApiError(400, "video needs either an id or a video_url: give one of the two", param="video")
        if self.video_url is None:
            return None
        return _bytes_of(self.video_url, "video.video_url", _CLIP_URLS, MOST_CLIP_BYTES)


class ExtensionRequest(BaseModel):
    """The body of POST /v1/videos/extensions: an earlier video or a clip goes on.

    A video stays as large and as fast as it is; a clip becomes as large and as fast as the model's own videos.
    """

    model_config = ConfigDict(extra="forbid")

    video: VideoReference | None = Field(
        default=None, description="what to go on from, unless a clip is sent as a file in this field of a form"
    )
    prompt: Annotated[str, AfterValidator(validating(check_prompt))] = Field(description="what happens next")
    seconds: Annotated[str, BeforeValidator(_as_text), AfterValidator(validating(_seconds))] = Field(
        description="how much longer it becomes, in seconds"
    )
    seed: Annotated[int, Field(ge=-1, le=LARGEST_SEED)] | None = Field(
        default=None, description="as for a new video: another one, another sequel"
    )
    model: str | None = Field(
        default=None, description="of a clip, one of GET /v1/models; a video is gone on from by the model that made it"
    )
    search: Search = Search()


class PolicyOffer(BaseModel):
    """A search policy: what it does, a description of each of its options, and their defaults."""

    description: str
    options: dict[str, str] = {}
    defaults: dict[str, Any] = {}


class VerifierOffer(BaseModel):
    """A verifier of the panel: its kind, as in the panel's file, and the stages of a video that it judges."""

    kind: str
    judges: list[Assessment]


class Model(BaseModel):
    """A model on offer. ``knows`` says which prompts it was trained on; empty where any prompt is worth trying.

    A request that names neither size nor length gets ``size`` and ``seconds``, and may ask for ``most_videos``.
    ``flops`` are those of one such video without a search, decoding included: 1x.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "framegrove"
    knows: str = ""
    size: str = ""
    fps: float = 0
    seconds: float = 0
    most_seconds: float = 0
    budget: str = ""
    most_budget: str = ""
    most_videos: int = 1
    flops: float = 0
    policies: dict[str, PolicyOffer] = {}
    verifiers: dict[str, VerifierOffer] = {}


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class VideoError(BaseModel):
    """Why a video failed: ``invalid_request`` or ``server_error``, and a sentence."""

    code: str
    message: str


class Video(BaseModel):
    """A video that is queued, in progress or finished. Times are in Unix seconds, ``progress`` in per cent."""

    id: str
    object: Literal["video"] = "video"
    model: str
    prompt: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    seconds: str
    size: str
    seed: int
    search: Search
    user: str | None = None
    metadata: dict[str, str] = {}
    remixed_from_video_id: str | None = None
    extended_from_video_id: str | None = None
    batch: list[str] = Field(
        default=[], description="the ids of all videos of the request, by seed, where it asked for several"
    )
    queue_position: int | None = Field(default=None, description="how many wait before it, while it is queued")
    error: VideoError | None = None
    warnings: list[str] = Field(
        default=[],
        description="what a viewer should know: that the model hardly knows such a prompt, and what the "
        "search has met with",
    )


class VideoList(BaseModel):
    """GET /v1/videos: a page of videos. For the next one, ask ``after`` the last id while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class DeletedVideo(BaseModel):
    """DELETE /v1/videos/{id}."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], body: Any) -> Body:
    """A request in a decoded JSON body. Raises ApiError, in one sentence that names the field."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object with at least a prompt")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        field = ".".join(str(part) for part in problems_of(error)[0]["loc"])
        raise ApiError(400, describe(error, kind, noun="field"), param=field) from None
