"""A scoring function to copy from: what a ``callable`` verifier calls (jobs/configs/verifiers_example.yaml)."""

from __future__ import annotations

from framegrove.verification.clips import Frames


def contrast(frames: Frames, prompt: str) -> float:
    """How much of the range from black to white the average frame uses, in [0, 1]."""
    lightest, darkest = frames.max(axis=(1, 2, 3)), frames.min(axis=(1, 2, 3))
    return float((lightest.astype(float) - darkest).mean() / 255.0)
