"""The causal video VAE: 8x8x8 compression, 16 latent channels, clips of any length, streamed unit by unit.

It equals the VAE of the public Pyramid Flow checkpoints layer for layer (MAGVIT-v2-like; PFM section 3.4). Every
convolution sees the current and earlier frames only, with zeros before the first; group norm and the middle attention
act on each frame alone. Unit 0 is therefore an ordinary image, and a unit's frames depend on that unit and on earlier
ones, the latter only through a few cached frames at each convolution. `CausalVideoVae.decode_unit` relies on this.
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
    """The encoder's diagonal Gaussian over latents; both tensors are BCTHW."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random draw; the noise is drawn on the CPU."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Elementwise KL divergence from the standard normal distribution, in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class CausalVideoVae(nn.Module):
    """Encodes videos of 1 + 8n frames into 1 + n latent frames (units) and back.

    Videos are BCTHW in [-1, 1], float32 on the way in and out whatever the weights' type. State-dict names are those of
    the public checkpoints.
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
        """The distribution of a whole clip's latents. Raises ValueError for a size that cannot be encoded."""
        self._check_video(video_BCTHW, first=True)
        return self._moments(video_BCTHW, None)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """The video of a whole clip's latents, not clamped."""
        return self._frames(latent_BCTHW, None)

    def encode_unit(self, video_BCTHW: Tensor, state: State | None = None) -> tuple[Moments, State]:
        """Latents of the next unit or units of a clip, given the ``state`` after its earlier frames.

        At the start ``state`` is None and the video has 1 + 8n frames; later it has 8n. Pass the returned state to the
        next call. It is a flat list of tensors whose sizes do not depend on the length of the clip.
        """
        self._check_video(video_BCTHW, first=state is None)
        past = Past(state)
        moments = self._moments(video_BCTHW, past)
        return moments, past.present

    def decode_unit(self, latent_BCTHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Frames of the next unit or units of a clip, given the ``state`` after its earlier units.

        The result equals decoding the whole clip at once. At the start ``state`` is None and the first unit gives 1
        frame; every later unit gives 8. The state is never modified, so several continuations of a branch can start
        from the same one, and it may be on another device.
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
            raise ValueError(f"video is {height}x{width}: both must be multiples of {side}; pad or resize it")
        if first and frames % step != 1 % step:
            raise ValueError(f"video has {frames} frames: the VAE takes 1 + {step} x n; drop or repeat some")
        if not first and (not frames or frames % step):
            raise ValueError(f"{frames} frames cannot continue a clip: the VAE takes {step} x n after the first unit")

    def _check_latent(self, latent: Tensor) -> None:
        channels = self.config.decoder_in_channels
        if latent.ndim != 5 or latent.shape[1] != channels or not latent.shape[2]:
            raise ValueError(f"latents must be (batch, {channels}, units, height, width), not {tuple(latent.shape)}")


class Past:
    """Cached frames for every convolution that spans several frames, in the order in which the convolutions run.

    ``present`` is the state after this call: every convolution appends to it.
    """

    def __init__(self, state: State | None) -> None:
        self.first = state is None
        self.present: State = []
        self._cached = iter(state or ())

    def extend(self, x: Tensor, needed: int, kept: int) -> Tensor:
        """``x`` preceded by the ``needed`` frames before it (zeros at the start); stores the last ``kept`` frames."""
        if self.first:
            x = _zeros_before(x, needed)
        else:
            cached = next(self._cached)
            if cached.shape[0] != x.shape[0] or cached.shape[3:] != x.shape[3:]:
                raise ValueError(
                    f"the state is of another clip: it has batch {cached.shape[0]} at {tuple(cached.shape[3:])}, "
                    f"the input batch {x.shape[0]} at {tuple(x.shape[3:])}"
                )
            x = torch.cat([cached.to(x.device), x], dim=2)
        self.present.append(x[:, :, -kept:].clone())  # a view would keep the whole activation alive
        return x


def _zeros_before(x: Tensor, frames: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, frames, 0))


class CausalConv3d(nn.Module):
    """Convolution whose output at a frame depends on that frame and earlier ones only."""

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
        return _convolve(self.conv, x)


def _convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """``conv(x)``, for inference on a CPU always by oneDNN.

    PyTorch chooses oneDNN for larger batches, but at batch size 1 it runs a small float32 convolution through
    ``slow_conv3d``, which takes several times as long. So the operator that it chooses otherwise is called directly.
    """
    if not cpu_inference(x) or not torch.backends.mkldnn.is_available():
        return conv(x)
    # oneDNN picks its kernel by memory format, and kernels round differently: one format gives the same bits always.
    x = x.contiguous(memory_format=torch.channels_last_3d)
    padding = [int(side) for side in conv.padding]
    return torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups)


def cpu_inference(x: Tensor) -> bool:
    """Whether ``x`` is float32 on a CPU and no gradients are recorded.

    Then every clip's result is the same, bit for bit, however many clips share the call.
    """
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame by itself, so that no frame depends on a later one."""

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
        each_NCHW = x.transpose(1, 2).flatten(0, 1)
        if cpu_inference(x):
            # Group norm rounds differently in different memory formats, and matrix products by their number of rows:
            # frame by frame, the result of one clip does not depend on how many share the call.
            mixed_NLC = torch.cat([self._mixed(frame.contiguous()) for frame in each_NCHW.split(1)])
        else:
            mixed_NLC = self._mixed(each_NCHW)
        return x + mixed_NLC.transpose(1, 2).reshape(batch, frames, -1, height, width).transpose(1, 2)

    def _mixed(self, frames_NCHW: Tensor) -> Tensor:
        pixels_NLC = self.group_norm(frames_NCHW).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(pixels_NLC), self.to_k(pixels_NLC), self.to_v(pixels_NLC)
        mixed_NLC: Tensor = self.to_out[0](F.scaled_dot_product_attention(q, k, v))
        return mixed_NLC


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
    """1 + 2n frames to 1 + n (the first frame alone makes one); later in a stream, 2n to n."""

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
    """1 + n frames to 1 + 2n (of the two made from the first, the earlier is dropped); later in a stream, n to 2n."""

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
    """``extent`` and ``finer`` are the temporal kernel sizes of this level and, for its upsamplers, of the next."""

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
