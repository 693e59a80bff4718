"""VBench's own scoring of a folder of videos, by its own code or FastVideo's, and what of it needs no model.

VBench (`pip install vbench`) pins versions of NumPy and transformers that nothing else here can use, so it runs in Ray
tasks with an environment of their own, a dimension each, on whichever GPUs of the cluster are free. Its weights are
downloads of several GB that it finds in one folder (VBENCH_CACHE_DIR); nothing is downloaded here. Folders must be on
storage that the machines with GPUs share with this one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from framegrove.errors import UserError
from framegrove.evaluation import vbench
from framegrove.evaluation.vbench import NATIVE, RESULTS, Prompt

if TYPE_CHECKING:
    from jobs.console import Display

# VBench and the CLIP that it takes import from setuptools what 70 does not have any more.
PACKAGES = ("vbench==0.1.5", "setuptools<70")
DETECTRON = "detectron2@git+https://github.com/facebookresearch/detectron2.git"
_DETECTED = ("object_class", "multiple_objects", "color", "spatial_relationship")
_SCORED = ".scored"  # beside results: which videos they are of; no name that VBench's readers would take for results
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz")

# What VBench 0.1.5 looks for below its folder of weights (its vbench/utils.py, with weights from local files).
WEIGHTS: dict[str, tuple[str, ...]] = {
    "subject_consistency": ("dino_model/dino_vitbase16_pretrain.pth", "dino_model/facebookresearch_dino_main"),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
    **dict.fromkeys(_DETECTED, ("grit_model/grit_b_densecap_objectdet.pth",)),
    "human_action": ("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
    "scene": ("caption_model/tag2text_swin_14m.pth",),
    "appearance_style": ("clip_model/ViT-B-32.pt",),
    "temporal_style": _VICLIP,
    "overall_consistency": _VICLIP,
}


def check_weights(folder: Path, dimensions: Iterable[str]) -> None:
    """Raise UserError unless VBench's weights for these dimensions are all in ``folder``."""
    for dimension in dimensions:
        for name in WEIGHTS.get(dimension, ()):
            if not (folder / name).exists():
                raise UserError(
                    f"VBench's weights for {dimension} are not there: {folder / name} is missing, which VBench "
                    "downloads when it runs by itself; or leave it out of --dimension"
                )


def environment(dimension: str, weights: Path) -> dict[str, Any]:
    """The Ray runtime environment of a task that scores a dimension: VBench's packages beside this machine's torch."""
    packages = [*PACKAGES, *([DETECTRON] if dimension in _DETECTED else [])]
    return {"pip": packages, "env_vars": {"VBENCH_CACHE_DIR": str(weights.absolute())}}


@dataclass(frozen=True)
class Scoring:
    """A folder of ``videos`` of some ``prompts``, and ``out``, where VBench's files of results for them are kept."""

    videos: Path
    prompts: Sequence[Prompt]
    out: Path

    def file(self, dimension: str) -> Path:
        """The file of a dimension's results."""
        return self.out / f"{dimension}{RESULTS}"

    def missing(self, dimensions: Iterable[str]) -> list[str]:
        """The dimensions without results of just the videos that are there now."""
        known = self._read()
        return [each for each in dimensions if not self.file(each).is_file() or known.get(each) != self._of(each)]

    def done(self, dimension: str) -> None:
        """Note which videos a dimension's results are of."""
        from framegrove.files import write_json

        write_json(self.out / _SCORED, {**self._read(), dimension: self._of(dimension)})

    def keep(self, dimension: str, score: float, each: Sequence[Mapping[str, Any]]) -> None:
        """Write a dimension's results as VBench does."""
        from framegrove.files import write_json

        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.file(dimension), {dimension: [score, list(each)]})
        self.done(dimension)

    def _of(self, dimension: str) -> str:
        there = [(path.name, path.stat().st_size) for _, path in vbench.videos_of(self.videos, self.prompts, dimension)]
        return hashlib.blake2b(repr(there).encode(), digest_size=8).hexdigest()

    def _read(self) -> dict[str, str]:
        path = self.out / _SCORED
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def score_natively(scoring: Scoring, dimensions: Iterable[str]) -> None:
    """Score what needs no model, and leave the files of results that VBench would."""
    for dimension in scoring.missing(each for each in dimensions if each in NATIVE):
        scoring.keep(dimension, *vbench.native_score(dimension, scoring.videos, scoring.prompts))


def score_by_vbench(scoring: Scoring, suite: Path, dimensions: Sequence[str], weights: Path, display: Display) -> None:
    """Score dimensions by VBench's own code, in Ray tasks, and leave its files of results.

    A task that dies is tried again once. Raises UserError where weights are missing.
    """
    import ray

    from framegrove.cluster.session import connect

    check_weights(weights, dimensions)
    scoring.out.mkdir(parents=True, exist_ok=True)
    display.begin("VBench scores the videos")
    with connect():
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        places = str(suite.absolute()), str(scoring.videos.absolute()), str(scoring.out.absolute())
        left = {
            ray.remote(score_one)
            .options(num_gpus=gpus, max_retries=1, runtime_env=environment(each, weights))
            .remote(each, *places): each
            for each in dimensions
        }
        count = len(left)
        while left:
            (done,), _ = ray.wait(list(left), num_returns=1)
            ray.get(done)
            scoring.done(left[done])
            display.show(1 - (len(left) - 1) / count, left.pop(done))


def score_one(dimension: str, suite: str, videos: str, out: str) -> None:
    """Score one dimension where VBench can be imported; its results appear in ``out`` whole or not at all."""
    import torch
    from vbench import VBench  # type: ignore[import-not-found]  # in an environment of its own

    partial = os.path.join(out, f".{dimension}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    scorer = VBench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), suite, partial)
    scorer.evaluate(
        videos_path=videos, name=dimension, dimension_list=[dimension], local=True, read_frame=False,
        mode="vbench_standard", imaging_quality_preprocessing_mode="longer",
    )  # fmt: skip
    os.replace(os.path.join(partial, f"{dimension}{RESULTS}"), os.path.join(out, f"{dimension}{RESULTS}"))
    shutil.rmtree(partial, ignore_errors=True)


def has_fastvideo() -> bool:
    """Whether FastVideo's evaluation (``fastvideo.eval``) is installed here."""
    return importlib.util.find_spec("fastvideo") is not None and importlib.util.find_spec("fastvideo.eval") is not None


def score_by_fastvideo(scoring: Scoring, dimensions: Sequence[str], display: Display) -> None:
    """Score dimensions by FastVideo's port of VBench (``fastvideo.eval``), and leave files of results as VBench does.

    A dimension is the mean over its videos; what FastVideo skips for want of something counts as not scored. Whether
    its numbers are VBench's is FastVideo's to promise.
    """
    import torch
    from fastvideo.eval import create_evaluator  # type: ignore[import-not-found]  # the user's, where there is one

    for at, dimension in enumerate(dimensions):
        display.begin(f"FastVideo scores {dimension.replace('_', ' ')}")
        display.show(at / len(dimensions))
        there = vbench.videos_of(scoring.videos, scoring.prompts, dimension)
        if not there:
            raise UserError(f"{scoring.videos} has no video for {dimension}: make some, or leave it out of --dimension")
        metric = f"vbench.{dimension}"
        evaluator = create_evaluator(metrics=[metric], device="cuda" if torch.cuda.is_available() else "cpu")
        found = evaluator.evaluate(samples=[_sample(prompt, path, dimension) for prompt, path in there])
        scores = [(path, result[metric].score) for (_, path), result in zip(there, found, strict=True)]
        scored = [(path, float(score)) for path, score in scores if score is not None]
        if not scored:
            display.say(f"FastVideo scores no video for {dimension}: {found[0][metric].details.get('skipped', '')}")
            continue
        each = [{"video_path": str(path), "video_results": score} for path, score in scored]
        scoring.keep(dimension, fmean(score for _, score in scored), each)


def _sample(prompt: Prompt, path: Path, dimension: str) -> dict[str, Any]:
    """A video as FastVideo takes it: what a dimension has to know is flat there."""
    return {
        "video": str(path),
        "text_prompt": prompt.text,
        "auxiliary_info": dict(prompt.auxiliary.get(dimension, {})),
    }
