"""Tokens of a drive and the two-layer adapters that turn each modality's features into model space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import FeedForward, Position
from .spec import ModelSpec


@dataclass(kw_only=True)
class Tokens:
    """All tokens of one modality in a drive, in processing order. Everything but `values` is [B, N].

    values: camera [B,N,patch_dim], audio [B,N,audio_dim], text [B,N] bytes (i64), telemetry [B,N].
    signal: index into the specification's signals (telemetry only).
    chunk: processing number of the token's chunk; rises with arrival. tick: tick of arrival.
    present: False marks padding.
    """

    values: Tensor
    time_ns: Tensor
    row: Tensor
    col: Tensor
    topic: Tensor
    chunk: Tensor
    tick: Tensor
    present: Tensor
    signal: Tensor | None = None

    @property
    def position(self) -> Position:
        return Position(self.time_ns, self.row, self.col)


class CameraAdapter(FeedForward):
    """Flattened patches; a learned position per patch is added."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.patch_dim, spec.d, spec.d)
        self.grid = spec.grid
        self.position = nn.Parameter(torch.zeros(spec.grid * spec.grid, spec.d))

    def forward(self, tokens: Tokens) -> Tensor:
        return super().forward(tokens.values) + self.position[tokens.row * self.grid + tokens.col]


class AudioAdapter(FeedForward):
    """Stacks of log-mel frames."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.audio_dim, spec.d, spec.d)

    def forward(self, tokens: Tokens) -> Tensor:
        return super().forward(tokens.values)


class TextAdapter(FeedForward):
    """Bytes, looked up in an embedding."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.d, spec.d, spec.d)
        self.embedding = nn.Parameter(torch.zeros(256, spec.d))

    def forward(self, tokens: Tokens) -> Tensor:
        return super().forward(self.embedding[tokens.values])


class TelemetryAdapter(FeedForward):
    """Fourier features of normalised signal values; a learned name per signal is added."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(2 * spec.fourier + 1, spec.d, spec.d)
        self.octaves = spec.fourier
        self.name = nn.Parameter(torch.zeros(len(spec.signals), spec.d))

    def features(self, value: Tensor) -> Tensor:
        """[v, sin(pi v), cos(pi v), sin(2 pi v), cos(2 pi v), ...] (NeRF, Mildenhall et al. 2020, eq. 4).

        Angles are taken in f64: in f32 the highest octave alone costs 1e-5.
        """
        octave = torch.arange(self.octaves, dtype=torch.float64, device=value.device)
        angle = math.pi * value.double().unsqueeze(-1) * 2.0**octave
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).to(value.dtype)
        return torch.cat([value.unsqueeze(-1), waves], dim=-1)

    def forward(self, tokens: Tokens) -> Tensor:
        return super().forward(self.features(tokens.values)) + self.name[tokens.signal]


ADAPTERS = {
    "camera": CameraAdapter,
    "audio": AudioAdapter,
    "text": TextAdapter,
    "telemetry": TelemetryAdapter,
}
