"""The long context: tokens pooled `ratio` to one, and the choice of blocks a chunk attends to behind its window.

src/umm/compressed.rs has the definition. Shapes as in `layers`; G pooled tokens of a drive, padded, r tokens to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapters import Tokens
from .layers import Position
from .spec import ModelSpec


class Compress(nn.Module):
    """One layer's kernels, a tap for each token of a group and column; the mean at first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        shape = (spec.compress_ratio, spec.kv_heads * spec.head_dim)
        self.k = nn.Parameter(torch.full(shape, 1.0 / spec.compress_ratio))
        self.v = nn.Parameter(torch.full(shape, 1.0 / spec.compress_ratio))


@dataclass(kw_only=True)
class Groups:
    """The pooled tokens of one modality: which tokens they are made of, and where and when they are."""

    members: Tensor  # [B,G,r], numbers of tokens
    position: Position  # [B,G], means
    newest_ns: Tensor  # [B,G]
    topic: Tensor  # [B,G]
    index: Tensor  # [B,G], counts the topic's pooled tokens
    present: Tensor  # [B,G], False marks padding


def rounded_mean(x: Tensor) -> Tensor:
    """Mean of integers [..., r], halves up, from the first one's value so that nothing overflows."""
    n = x.shape[-1]
    first = x[..., :1]
    return first[..., 0] + torch.div(2 * (x - first).sum(-1) + n, 2 * n, rounding_mode="floor")


def topic_rows(tokens: Tokens, b: int, topic: int) -> Tensor:
    """Numbers of a topic's tokens, in the order they arrived."""
    return ((tokens.topic[b] == topic) & tokens.present[b]).nonzero()[:, 0]


def groups(tokens: Tokens, spec: ModelSpec) -> Groups:
    """Every whole group of every topic."""
    r = spec.compress_ratio
    drives = []
    for b in range(tokens.topic.shape[0]):
        members, topics, index = [], [], []
        for topic in tokens.topic[b][tokens.present[b]].unique().tolist():
            rows = topic_rows(tokens, b, topic)
            whole = len(rows) // r
            members.append(rows[: whole * r].view(whole, r))
            topics.append(torch.full((whole,), topic, device=rows.device))
            index.append(torch.arange(whole, device=rows.device))
        empty = tokens.topic.new_zeros(0)
        drives.append((torch.cat([empty.view(0, r), *members]), torch.cat([empty, *topics]), torch.cat([empty, *index])))

    most = max(len(members) for members, _, _ in drives)

    def padded(part: int) -> Tensor:
        return torch.stack([torch.cat([d[part], d[part].new_zeros(most - len(d[part]), *d[part].shape[1:])]) for d in drives])

    members = padded(0)

    def of_members(x: Tensor) -> Tensor:
        return x.gather(1, members.flatten(1)).view_as(members)

    time_ns = of_members(tokens.time_ns)
    counts = torch.tensor([len(d[0]) for d in drives], device=members.device)
    return Groups(
        members=members,
        position=Position(
            rounded_mean(time_ns), rounded_mean(of_members(tokens.row)), rounded_mean(of_members(tokens.col))
        ),
        newest_ns=time_ns.amax(-1),
        topic=padded(1),
        index=padded(2),
        present=torch.arange(most, device=members.device) < counts.unsqueeze(-1),
    )


def pool(x: Tensor, kernel: Tensor, made_of: Groups) -> Tensor:
    """x [B,N,KV,hd] -> [B,G,KV,hd]."""
    b, n_groups, r = made_of.members.shape
    flat = x.flatten(2)
    rows = flat.gather(1, made_of.members.flatten(1).unsqueeze(-1).expand(-1, -1, flat.shape[-1]))
    return (rows.view(b, n_groups, r, -1) * kernel).sum(2).unflatten(-1, x.shape[2:])


@torch.no_grad()
def attended(
    q: Tensor, k: Tensor, tokens: Tokens, made_of: Groups, spec: ModelSpec, window_ns: int, capacity: int
) -> Tensor:
    """Which pooled tokens each token attends to, [B,N,G]; q [B,N,H,hd] and pooled k [B,G,KV,hd] rotated."""
    mask = torch.zeros(*q.shape[:2], k.shape[1], dtype=torch.bool, device=q.device)
    for b in range(q.shape[0]):
        for chunk in tokens.chunk[b][tokens.present[b]].unique().tolist():
            rows = ((tokens.chunk[b] == chunk) & tokens.present[b]).nonzero()[:, 0]
            chosen = of_chunk(q[b], k[b], tokens, made_of, spec, window_ns, capacity, b, rows)
            age_ns = tokens.time_ns[b, rows].unsqueeze(-1) - made_of.newest_ns[b]
            mask[b, rows] = chosen & (age_ns > window_ns)
    return mask


def of_chunk(
    q: Tensor,
    k: Tensor,
    tokens: Tokens,
    made_of: Groups,
    spec: ModelSpec,
    window_ns: int,
    capacity: int,
    b: int,
    rows: Tensor,
) -> Tensor:
    """The pooled tokens [G] that the chunk `rows` attends to, but for each query's own window."""
    r, block = spec.compress_ratio, spec.compress_block
    topic = int(tokens.topic[b, rows[0]])
    own = topic_rows(tokens, b, topic)
    start = int((own < rows[0]).sum())
    until = int((tokens.tick[b, own] <= tokens.tick[b, rows[0]]).sum()) // r
    index, number = made_of.index[b], made_of.index[b] // block
    seen = (made_of.topic[b] == topic) & made_of.present[b]
    seen &= ((index + 1) * r <= start) & (number * block + capacity >= until)
    oldest_ns = int(tokens.time_ns[b, rows].min())

    whole, scores = [], {}
    query = q[rows].unflatten(1, (spec.kv_heads, -1)).mean(dim=(0, 2))
    for candidate in number[seen].unique().tolist():
        members = seen & (number == candidate)
        scores[candidate] = float((query * k[members].mean(0)).sum())
        out = oldest_ns - int(made_of.newest_ns[b][members].max()) > window_ns
        if out and int(members.sum()) == block:
            whole.append(candidate)
    newest = max(whole, default=-1)
    ranked = sorted((c for c in scores if c <= newest), key=lambda c: (-scores[c], -c))
    chosen = torch.zeros_like(seen)
    for candidate in ranked[: spec.compress_top_k]:
        chosen |= number == candidate
    return seen & (chosen | (number > newest))
