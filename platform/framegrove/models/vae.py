"""The causal video VAE: 8x8x8 compression, 16 latent channels, any clip length, streamed unit by unit.

Layer for layer the one of the public Pyramid Flow checkpoints (MAGVIT-v2-like; PFM section 3.4): every convolution
looks at the current and at earlier frames only, with zeros before the first; group norm and the middle attention
act on each frame alone. Unit 0 is therefore an ordinary image, and the frames of a unit depend on that unit and the
ones before it, through a few cached frames at each convolution. `CausalVideoVae.decode_unit` uses that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framegrove.config.vae import VaeConfig

State = list[Tensor]
_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class Moments:
    """Diagonal Gaussian over latents, as the encoder gives it; both of shape BCTHW."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the unit Gaussian, in nats, elementwise."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class CausalVideoVae(nn.Module):
    """Encodes videos of 1 + 8n frames into 1 + n latent frames (units) and back.

    Videos are BCTHW in [-1, 1], in and out float32 whatever the weights' type. State-dict names are the public
    checkpoints'.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        latent = config.encoder_out_channels
        self.quant_conv = CausalConv3d(2 * latent, 2 * latent, (1, 1, 1))
        self.post_quant_conv = CausalConv3d(latent, latent, (1, 1, 1))

    def encode(self, video_BCTHW: Tensor) -> Moments:
        """The distribution of a whole clip's latents. Raises ValueError for sizes it cannot encode."""
        self._check_video(video_BCTHW, first=True)
        return self._moments(video_BCTHW, None)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """The video of a whole clip's latents, not clamped."""
        return self._frames(latent_BCTHW, None)

    def encode_unit(self, video_BCTHW: Tensor, state: State | None = None) -> tuple[Moments, State]:
        """Latents of the next unit, or units, of a clip whose earlier frames are summed up in ``state``.

        ``state`` is None at the start: then 1 + 8n frames are taken, later 8n. Give the returned state to the next
        call; it is a flat list of tensors of fixed size, whatever the length of the clip.
        """
        self._check_video(video_BCTHW, first=state is None)
        past = Past(state)
        moments = self._moments(video_BCTHW, past)
        return moments, past.present

    def decode_unit(self, latent_BCTHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Frames of the next unit, or units, given the state after the units before; equal to decoding all at once.

        ``state`` is None at the start, where the first unit gives 1 frame; every later one gives 8. The state is
        never modified, so that several continuations of one branch can start from it, and may lie on another device.
        """
        past = Past(state)
        return self._frames(latent_BCTHW, past), past.present

    def _moments(self, video: Tensor, past: Past | None) -> Moments:
        video = video.to(self.quant_conv.conv.weight.dtype)
        mean, logvar = self.quant_conv(self.encoder(video, past), past).float().chunk(2, dim=1)
        return Moments(mean, logvar.clamp(-30.0, 20.0))

    def _frames(self, latent: Tensor, past: Past | None) -> Tensor:
        self._check_latent(latent)
        latent = latent.to(self.post_quant_conv.conv.weight.dtype)
        frames: Tensor = self.decoder(self.post_quant_conv(latent, past), past)
        return frames.float()

    def _check_video(self, video: Tensor, first: bool) -> None:
        config = self.config
        channels, side, step = config.encoder_in_channels, config.spatial_factor, config.temporal_factor
        if video.ndim != 5 or video.shape[1] != channels:
            raise ValueError(f"a video must be (batch, {channels}, frames, height, width), not {tuple(video.shape)}")
        frames, height, width = video.shape[2:]
        if height % side or width % side or not height or not width:
            raise ValueError(f"video is {height}x{width}: both must be multiples of {side}, pad or resize it")
        if first and frames % step != 1 % step:
            raise ValueError(f"video has {frames} frames: the VAE takes 1 + {step} x n, drop or repeat some")
        if not first and (not frames or frames % step):
            raise ValueError(f"{frames} frames cannot continue a clip: the VAE takes {step} x n after the first unit")

    def _check_latent(self, latent: Tensor) -> None:
        channels = self.config.decoder_in_channels
        if latent.ndim != 5 or latent.shape[1] != channels or not latent.shape[2]:
            raise ValueError(f"latents must be (batch, {channels}, units, height, width), not {tuple(latent.shape)}")


class Past:
    """Earlier frames at every convolution with an extent in time, in the order in which they run."""

    def __init__(self, state: State | None) -> None:
        self.first = state is None
        self.present: State = []
        self._cached = iter(state or ())

    def extend(self, x: Tensor, needed: int, kept: int) -> Tensor:
        """``x`` behind the ``needed`` frames before it (zeros at the start); keeps its last ``kept`` frames."""
        if self.first:
            x = _zeros_before(x, needed)
        else:
            cached = next(self._cached)
            if cached.shape[0] != x.shape[0] or cached.shape[3:] != x.shape[3:]:
                raise ValueError(
                    f"the state is of another clip: it holds batch {cached.shape[0]} at {tuple(cached.shape[3:])}, "
                    f"given batch {x.shape[0]} at {tuple(x.shape[3:])}"
                )
            x = torch.cat([cached.to(x.device), x], dim=2)
        self.present.append(x[:, :, -kept:].clone())  # a view would keep the whole activation alive
        return x


def _zeros_before(x: Tensor, frames: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, frames, 0))


class CausalConv3d(nn.Module):
    """Convolution whose output at a frame depends on that frame and earlier ones."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.extent, self.step = kernel[0], stride[0]
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        if self.extent > 1 and past is None:
            x = _zeros_before(x, self.extent - 1)
        elif self.extent > 1 and past is not None:
            x = past.extend(x, needed=self.extent - 1, kept=self.extent - self.step)
        return self.conv(x)


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame alone, so that nothing leaks between frames."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        # On a CPU, group norm in bfloat16 is ten times slower on channels-last tensors, which convolutions prefer.
        each = super().forward(x.transpose(1, 2).flatten(0, 1).contiguous())
        return each.unflatten(0, (-1, frames)).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int, extent: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(groups, inputs)
        self.conv1 = CausalConv3d(inputs, outputs, (extent, 3, 3))
        self.norm2 = FrameNorm(groups, outputs)
        self.conv2 = CausalConv3d(outputs, outputs, (extent, 3, 3))
        self.conv_shortcut = CausalConv3d(inputs, outputs, (1, 1, 1)) if inputs != outputs else None

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), past)
        h = self.conv2(F.silu(self.norm2(h)), past)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x, past))


class FrameAttention(nn.Module):
    """Single-head self-attention among the pixels of each frame, with its own norm and residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames, height, width = x.shape
        pixels = self.group_norm(x.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)  # (BT, HW, C)
        q, k, v = self.to_q(pixels), self.to_k(pixels), self.to_v(pixels)
        mixed = self.to_out[0](F.scaled_dot_product_attention(q, k, v))
        return x + mixed.transpose(1, 2).reshape(batch, frames, -1, height, width).transpose(1, 2)


class MiddleBlock(nn.Module):
    def __init__(self, channels: int, groups: int, extent: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels, groups, extent) for _ in range(2)])

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, past)), past)


class HalveSpace(nn.Module):
    def __init__(self, channels: int, extent: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (extent, 3, 3), stride=(1, 2, 2))

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        return self.conv(x, past)


class HalveTime(nn.Module):
    """1 + 2n frames to 1 + n (the first one alone), or, further on in a stream, 2n to n."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (3, 3, 3), stride=(2, 1, 1))

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        return self.conv(x, past)


class DoubleSpace(nn.Module):
    def __init__(self, channels: int, extent: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 4 * channels, (extent, 3, 3))

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        return unfold_patches(self.conv(x, past), 2)


class DoubleTime(nn.Module):
    """1 + n frames to 1 + 2n (of the first one's two, the earlier is dropped), or, further on, n to 2n."""

    def __init__(self, channels: int, extent: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels, (extent, 3, 3))

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        x = self.conv(x, past).unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3)
        return x[:, :, 1:] if past is None or past.first else x


class DownBlock(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, layers: int, groups: int, extent: int, space: bool, time: bool
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * layers
        self.resnets = nn.ModuleList([ResidualBlock(widths[i], outputs, groups, extent) for i in range(layers)])
        self.downsamplers = nn.ModuleList([HalveSpace(outputs, extent)] if space else [])
        self.temporal_downsamplers = nn.ModuleList([HalveTime(outputs)] if time else [])

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.temporal_downsamplers):
            x = layer(x, past)
        return x


class UpBlock(nn.Module):
    """``finer`` is the extent in time at the next level, which the upsamplers already work at."""

    def __init__(
        self, inputs: int, outputs: int, layers: int, groups: int, extent: int, finer: int, space: bool, time: bool
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * layers
        self.resnets = nn.ModuleList([ResidualBlock(widths[i], outputs, groups, extent) for i in range(layers)])
        self.upsamplers = nn.ModuleList([DoubleSpace(outputs, finer)] if space else [])
        self.temporal_upsamplers = nn.ModuleList([DoubleTime(outputs, finer)] if time else [])

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers, *self.temporal_upsamplers):
            x = layer(x, past)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.encoder_block_out_channels, config.encoder_norm_num_groups
        extents = config.encoder_time_kernels
        self.patch = config.patch_size
        pixels = config.encoder_in_channels * self.patch**2
        self.conv_in = CausalConv3d(pixels, widths[0], (extents[0], 3, 3))
        self.down_blocks = nn.ModuleList(
            DownBlock(inputs, outputs, layers, groups, extent, space, time)
            for inputs, outputs, layers, extent, space, time in zip(
                widths[:1] + widths[:-1],
                widths,
                config.encoder_layers_per_block,
                extents,
                config.encoder_spatial_down_sample,
                config.encoder_temporal_down_sample,
                strict=True,
            )
        )
        self.mid_block = MiddleBlock(widths[-1], groups, extents[-1])
        self.conv_norm_out = FrameNorm(groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.encoder_out_channels, (extents[-1], 3, 3))

    def forward(self, video: Tensor, past: Past | None) -> Tensor:
        x = self.conv_in(fold_patches(video, self.patch), past)
        for block in self.down_blocks:
            x = block(x, past)
        x = self.mid_block(x, past)
        return self.conv_out(F.silu(self.conv_norm_out(x)), past)


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.decoder_block_out_channels[::-1], config.decoder_norm_num_groups
        extents = config.decoder_time_kernels
        self.patch = config.patch_size
        self.conv_in = CausalConv3d(config.decoder_in_channels, widths[0], (extents[0], 3, 3))
        self.mid_block = MiddleBlock(widths[0], groups, extents[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(inputs, outputs, layers, groups, extent, finer, space, time)
            for inputs, outputs, layers, extent, finer, space, time in zip(
                widths[:1] + widths[:-1],
                widths,
                config.decoder_layers_per_block,
                extents,
                extents[1:] + extents[-1:],
                config.decoder_spatial_up_sample,
                config.decoder_temporal_up_sample,
                strict=True,
            )
        )
        self.conv_norm_out = FrameNorm(groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.decoder_out_channels * self.patch**2, (extents[-1], 3, 3))

    def forward(self, latent: Tensor, past: Past | None) -> Tensor:
        x = self.mid_block(self.conv_in(latent, past), past)
        for block in self.up_blocks:
            x = block(x, past)
        return unfold_patches(self.conv_out(F.silu(self.conv_norm_out(x)), past), self.patch)


def fold_patches(x_BCTHW: Tensor, patch: int) -> Tensor:
    """Space to depth: channels become (channel, row in patch, column in patch)."""
    if patch == 1:
        return x_BCTHW
    b, c, t, h, w = x_BCTHW.shape
    x = x_BCTHW.reshape(b, c, t, h // patch, patch, w // patch, patch).permute(0, 1, 4, 6, 2, 3, 5)
    return x.reshape(b, c * patch**2, t, h // patch, w // patch)


def unfold_patches(x_BCTHW: Tensor, patch: int) -> Tensor:
    """Depth to space, the inverse of `fold_patches`."""
    if patch == 1:
        return x_BCTHW
    b, c, t, h, w = x_BCTHW.shape
    x = x_BCTHW.reshape(b, c // patch**2, patch, patch, t, h, w).permute(0, 1, 4, 5, 2, 6, 3)
    return x.reshape(b, c // patch**2, t, h * patch, w * patch)
