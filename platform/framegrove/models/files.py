"""Weights and JSON on disk: safetensors first, whole or in shards; a pickle is opened only where the user says so."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from framegrove.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLE_FILE = "diffusion_pytorch_model.bin"


def read_weights(
    folder: str | Path, dtype: torch.dtype | None = None, *, allow_pickle: bool = False
) -> dict[str, Tensor]:
    """All tensors of a folder as saved by diffusers, one file or shards with an index, in ``dtype`` where it is given.

    ``allow_pickle`` lets a .bin file be read where there are no safetensors, by torch's restricted unpickler. Raises
    ValueError, in one line, for files that are missing, damaged or not wanted.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder, allow_pickle=allow_pickle):
        for name, tensor in _tensors(path).items():
            weights[name] = tensor if dtype is None else tensor.to(dtype)
    return weights


@contextlib.contextmanager
def opened_weights(folder: str | Path, *, allow_pickle: bool = False) -> Iterator[Mapping[str, Weight]]:
    """The tensors of a folder by name, each read when it is asked for; files and errors as for `read_weights`."""
    with contextlib.ExitStack() as stack:
        weights: dict[str, Weight] = {}
        for path in weight_files(folder, allow_pickle=allow_pickle):
            if path.suffix == ".safetensors":
                file = stack.enter_context(_opened(path))
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    shape = torch.Size(file.get_slice(name).get_shape())
                    weights[name] = Weight(shape, functools.partial(file.get_tensor, name))
            else:
                weights |= {name: Weight(t.shape, functools.partial(_itself, t)) for name, t in _tensors(path).items()}
        yield weights


@dataclass(frozen=True)
class Weight:
    """A tensor in a file."""

    shape: torch.Size
    read: Callable[[], Tensor]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def weight_files(folder: str | Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold a folder's weights. Raises UserError when there are none that may be read."""
    folder = Path(folder)
    for name in (WEIGHTS_FILE, PICKLE_FILE) if allow_pickle else (WEIGHTS_FILE,):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json")
    if (folder / PICKLE_FILE).is_file() or (folder / f"{PICKLE_FILE}.index.json").is_file():
        raise UserError(
            f"{folder} holds its weights as a pickle ({PICKLE_FILE}), which can run any code when it is read: convert "
            "it to safetensors, or allow it (--allow-pickle; for jobs.train model.allow_pickle) if you trust where it "
            "comes from"
        )
    raise UserError(
        f"{folder} holds no weights: {WEIGHTS_FILE} is missing (a hub model that has only pickles needs --allow-pickle)"
    )


def save_weights(module: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a module's weights into ``folder``, made if need be, as they are or rounded to ``dtype``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, {"format": "pt"})


def check_keys(module: nn.Module, weights: Mapping[str, Tensor | Weight], where: str) -> None:
    """Raise UserError, in one line, when names or shapes differ from what the module needs."""
    needed = module.state_dict()
    missing = [name for name in needed if name not in weights]
    unexpected = [name for name in weights if name not in needed]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing keys: {_named(missing, unexpected)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected keys: {_named(unexpected, missing)}")
    for name, tensor in weights.items():
        if name in needed and tensor.shape != needed[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, config.json asks for {tuple(needed[name].shape)}")
            break
    if problems:
        raise UserError(f"{where} does not fit its config.json: {'; '.join(problems)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, in one line."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(data).__name__}")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object as JSON that people can read."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or any(Path(str(name)).name != name for name in places.values()):
        raise UserError(f"{index} names no shards beside it in its weight_map: download it again")
    paths = [index.parent / name for name in sorted(set(places.values()))]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        count = f"{absent[0]} is" if len(absent) == 1 else f"{absent[0]} and {len(absent) - 1} more are"
        raise UserError(f"{index.parent} is not whole: of {len(paths)} shards {count} missing, download them again")
    return paths


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises UserError when it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): download or write it again") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise UserError(f"{path} does not hold tensors by name alone: it is no file of weights")
    return data


def _named(names: Sequence[str], others: Sequence[str], shown: int = 6) -> str:
    """A few names, each with the nearest one on the other side."""
    parts = []
    for name in names[:shown]:
        near = difflib.get_close_matches(name, others, n=1)
        parts.append(f"{name} (nearest: {near[0]})" if near else name)
    return ", ".join(parts) + (f", and {len(names) - shown} more" if len(names) > shown else "")
