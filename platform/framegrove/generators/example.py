"""A generator of clouds that drift: what an adapter is made of, in full. platform/README.md shows it."""

from typing import Any

import torch
from torch.nn.functional import avg_pool2d

from framegrove.config.generator import Form
from framegrove.flow.noise import generator_for
from framegrove.flow.sampler import CancelledSampling, StageLatent
from framegrove.generators.protocol import Frames, OnStep, ShouldStop, Task, UnitPrice, Wanted

STEPS = 6


class Clouds:
    """Smooths noise, in two stages; each unit of a video begins with the clouds of the one before."""

    form = Form(fps=8, height=64, width=64, units=3, most_units=30, stages=2, first_frames=1, later_frames=8)

    def __init__(self, where: str, *, drift: int = 1) -> None:
        self.drift = drift  # px a frame

    def identity(self) -> Any:
        return {"version": 1}  # its options are told from others without this

    def price(self, wanted: Wanted) -> list[UnitPrice]:
        flops = 3 * 9 * wanted.height * wanted.width
        return [UnitPrice(steps=(STEPS, STEPS), step_flops=(flops, flops))] * wanted.units

    def load(self, device: str) -> None:
        self.device = device  # a real one reads its weights

    def sample(self, tasks: list[Task], stages: range, should_stop: ShouldStop, on_step: OnStep) -> list[StageLatent]:
        states = [task.start.x if task.start else self.noise(task) for task in tasks]
        for _ in stages:
            for step in range(STEPS):
                if should_stop():
                    raise CancelledSampling(step)
                states = [avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) for x in states]
                on_step()
        return [StageLatent(stages[-1], x) for x in states]

    def noise(self, task: Task) -> torch.Tensor:
        wanted = task.wanted
        noise = torch.randn(3, wanted.height, wanted.width, generator=generator_for(wanted.seed, task.path, "noise"))
        return noise if not task.history else task.history[-1].x + 0.5 * noise

    def decode(self, tasks: list[Task], latents: list[StageLatent]) -> list[Frames]:
        videos = []
        for task, latent in zip(tasks, latents, strict=True):
            count = self.form.later_frames if task.history else self.form.first_frames
            picture = (255 * torch.sigmoid(4 * latent.x)).to(torch.uint8).permute(1, 2, 0)
            videos.append(torch.stack([picture.roll(self.drift * frame, 1) for frame in range(count)]).numpy())
        return videos
