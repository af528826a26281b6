"""Building blocks: rotary positions, grouped-query attention with a sink, masks, feed-forward.

Shapes: B batch, N/Q/K tokens, H query heads, KV key/value heads, hd head size, d model size.
Times are i64 nanoseconds; differences are taken in integers before anything becomes a float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import ModelSpec

LAYER_NORM_EPS = 1e-5
TIME_UNIT_NS = 1e7
TIME_BASE = 10_000.0
GRID_BASE = 100.0


class Position(NamedTuple):
    """Where tokens lie in time and space: each [B, N] i64."""

    time_ns: Tensor
    row: Tensor
    col: Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the rotary angles, each [B, N, 1, hd/2]: time, row, then column pairs."""

    cos: Tensor
    sin: Tensor


def rotation(position: Position, origin_ns: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Rotary angles (RoPE, Su et al. 2021) of three coordinates, computed in f64.

    hd/4 pairs turn with time in 10 ms units since `origin_ns` [B] (negative before it), hd/8 with
    the row and hd/8 with the column.
    """

    def angles(coordinate: Tensor, pairs: int, base: float) -> Tensor:
        index = torch.arange(pairs, dtype=torch.float64, device=coordinate.device)
        return coordinate.double().unsqueeze(-1) * base ** (-index / pairs)

    elapsed = (position.time_ns - origin_ns.unsqueeze(-1)).double() / TIME_UNIT_NS
    angle = torch.cat(
        [
            angles(elapsed, head_dim // 4, TIME_BASE),
            angles(position.row, head_dim // 8, GRID_BASE),
            angles(position.col, head_dim // 8, GRID_BASE),
        ],
        dim=-1,
    ).unsqueeze(-2)
    return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate x [B, N, heads, hd]. In each section of the head, pair i is (i, i + half section)."""
    half = x.shape[-1] // 2
    pairs = [half // 2, half // 4, half // 4]
    sections = x.split([2 * p for p in pairs], dim=-1)
    out = []
    for section, cos, sin in zip(sections, by.cos.split(pairs, -1), by.sin.split(pairs, -1), strict=True):
        a, b = section.chunk(2, dim=-1)
        out += [a * cos - b * sin, a * sin + b * cos]
    return torch.cat(out, dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sink: Tensor) -> Tensor:
    """Softmax attention with a learned sink: q [B,Q,H,hd], k, v [B,K,KV,hd], mask [B,Q,K] -> [B,Q,H*hd].

    Query head h reads key/value head h // (H / KV) (GQA, Ainslie et al. 2023). The sink logit [H]
    takes part in the softmax with a zero value, so a query with no valid key gets zeros.
    """
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(q.shape[-1])
    valid = mask.unsqueeze(1)
    scores = scores.masked_fill(~valid, -math.inf)
    column = sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1].masked_fill(~valid, 0.0)
    return torch.einsum("bhqk,bkhe->bqhe", weights, v).flatten(-2)


def within_window(later_ns: Tensor, earlier_ns: Tensor, window_ns: int) -> Tensor:
    """0 <= later - earlier <= window, elementwise with broadcasting."""
    age = later_ns - earlier_ns
    return (age >= 0) & (age <= window_ns)


def layer_norm(d: int) -> nn.LayerNorm:
    """LayerNorm over the last dimension with weight and bias."""
    return nn.LayerNorm(d, eps=LAYER_NORM_EPS)


class NumberedLayers(nn.Module):
    """Layers registered under their numbers, so that parameters are called `<stack>.<i>.<...>`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.depth = len(layers)
        for i, layer in enumerate(layers):
            self.add_module(str(i), layer)

    def layers(self) -> Iterator[nn.Module]:
        return (self.get_submodule(str(i)) for i in range(self.depth))


class FeedForward(nn.Module):
    """fc2(gelu(fc1(x))), GELU in its tanh form."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Attention(nn.Module):
    """Projections q, k, v, o around `attend`; keys and values come from `source`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.q = nn.Linear(spec.d, spec.heads * spec.head_dim)
        self.k = nn.Linear(spec.d, spec.kv_heads * spec.head_dim)
        self.v = nn.Linear(spec.d, spec.kv_heads * spec.head_dim)
        self.o = nn.Linear(spec.heads * spec.head_dim, spec.d)
        self.sink = nn.Parameter(torch.zeros(spec.heads))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor, by: Rotation | None) -> Tensor:
        """x [B,Q,d], source [B,K,d], mask [B,Q,K] -> [B,Q,d]; `by` rotates both q and k (x is source)."""
        q, k, v = (self.split_heads(p) for p in (self.q(x), self.k(source), self.v(source)))
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        return self.o(attend(q, k, v, mask, self.sink))


class ModalitySource(nn.Module):
    """One modality's side of a fusion layer: keys, values, sink, temperature and gate."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.k = nn.Linear(spec.d, spec.kv_heads * spec.head_dim)
        self.v = nn.Linear(spec.d, spec.kv_heads * spec.head_dim)
        self.sink = nn.Parameter(torch.zeros(spec.heads))
        self.temperature = nn.Parameter(torch.ones(1))
        self.gate = Gate(spec.d + 2)


class Gate(nn.Module):
    """sigmoid(w . x + b) with a weight vector [inputs] and a bias [1]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ self.weight + self.bias)
