"""The umm model over whole drives: adapters, encoder, fusion, heads, caption decoder.

Parameter names are the tensor names of the weights file. A drive is a batch of recordings, padded:
per modality all tokens that ever arrive, each marked with its topic, chunk and tick of arrival, and
the tick times. Masks built from these marks make the batch result equal to the streaming one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapters import ADAPTERS, Tokens
from .decoder import BOS, EOS, VOCABULARY, CaptionTick, Decoder
from .layers import (
    Attention,
    FeedForward,
    ModalitySource,
    NumberedLayers,
    Position,
    Rotation,
    attend,
    layer_norm,
    rotate,
    rotation,
    within_window,
)
from .long_context import Compress, Groups, attended, groups, pool
from .spec import METADATA_KEY, ModelSpec

NORM_FLOOR = 1e-12


@dataclass(kw_only=True)
class Drive:
    """A batch of drives: K ticks with times [B,K] and modality qualities [B,K,M], and their tokens."""

    tokens: dict[str, Tokens]
    tick_time_ns: Tensor
    quality: Tensor
    origin_ns: Tensor
    window_ns: int
    context_capacity: int = 0  # pooled tokens a topic's long context holds; 0 for none


@dataclass(kw_only=True)
class DriveOutput:
    """What the model computes for a drive: n fusion tokens, L fusion layers, M modalities."""

    adapter: dict[str, Tensor]  # [B,N,d]
    encoder: dict[str, Tensor]  # [B,N,d]
    fusion_layers: Tensor  # [B,K,L,n,d], the residual stream after each layer
    fused: Tensor  # [B,K,n,d]
    gates: Tensor  # [B,K,L,M]
    events: Tensor  # [B,K,E], probabilities
    scene: Tensor  # [B,K,S], probabilities
    motion: Tensor  # [B,K,R]
    embedding: Tensor  # [B,K,e], unit norm


class ModalityEmbedding(nn.Module):
    """One learned vector per modality, in the specification's order."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(len(spec.modalities), spec.d))


@dataclass
class Long:
    """What the encoder needs for a long context."""

    tokens: Tokens
    made_of: Groups
    by: Rotation  # of the pooled tokens
    window_ns: int
    capacity: int


class EncoderLayer(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm1 = layer_norm(spec.d)
        self.attn = Attention(spec)
        self.norm2 = layer_norm(spec.d)
        self.ffn = FeedForward(spec.d, spec.ffn, spec.d)
        if spec.compress_ratio:
            self.compress = Compress(spec)

    def forward(self, x: Tensor, mask: Tensor, by: Rotation, long: Long | None) -> Tensor:
        h = self.norm1(x)
        x = x + (self.attn(h, h, mask, by) if long is None else self.attend_long(h, mask, by, long))
        return x + self.ffn(self.norm2(x))

    def attend_long(self, h: Tensor, mask: Tensor, by: Rotation, long: Long) -> Tensor:
        """Self-attention, the pooled tokens being further keys. Keys are pooled before they are rotated."""
        attn = self.attn
        q, k, v = (attn.split_heads(p(h)) for p in (attn.q, attn.k, attn.v))
        q = rotate(q, by)
        pooled_k = rotate(pool(k, self.compress.k, long.made_of), long.by)
        pooled_v = pool(v, self.compress.v, long.made_of)
        further = attended(q, pooled_k, long.tokens, long.made_of, self.spec, long.window_ns, long.capacity)
        keys, values = torch.cat([rotate(k, by), pooled_k], dim=1), torch.cat([v, pooled_v], dim=1)
        return attn.o(attend(q, keys, values, torch.cat([mask, further], dim=-1), attn.sink))


class Encoder(NumberedLayers):
    """Shared by all modalities; a token sees its own chunk and its topic's window before it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__([EncoderLayer(spec) for _ in range(spec.encoder_layers)])
        self.norm = layer_norm(spec.d)

    @staticmethod
    def mask(tokens: Tokens, window_ns: int) -> Tensor:
        """[B, query, key]: same topic, and same chunk or an earlier chunk inside the window."""

        def query(x: Tensor) -> Tensor:
            return x.unsqueeze(-1)

        def key(x: Tensor) -> Tensor:
            return x.unsqueeze(-2)

        own = query(tokens.chunk) == key(tokens.chunk)
        earlier = query(tokens.chunk) > key(tokens.chunk)
        recent = within_window(query(tokens.time_ns), key(tokens.time_ns), window_ns)
        topic = query(tokens.topic) == key(tokens.topic)
        return topic & (own | (earlier & recent)) & key(tokens.present)

    def forward(self, x: Tensor, mask: Tensor, by: Rotation, long: Long | None = None) -> Tensor:
        for layer in self.layers():
            x = layer(x, mask, by, long)
        return self.norm(x)


@dataclass
class Modality:
    """What fusion needs of one modality: encoder outputs and, per tick, which of them count."""

    index: int
    encoded: Tensor  # [B,N,d]
    by: Rotation
    valid: Tensor  # [B,K,N] bool
    available: Tensor  # [B,K] bool: any valid token
    age_s: Tensor  # [B,K], of the newest valid token; 0 where there is none
    quality: Tensor  # [B,K]


class GatedCrossAttention(nn.Module):
    """sum_m gate_m * attention_m, one softmax per modality, through one output projection."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.modalities = len(spec.modalities)
        self.q = nn.Linear(spec.d, spec.heads * spec.head_dim)
        self.o = nn.Linear(spec.heads * spec.head_dim, spec.d, bias=False)
        for name in spec.modalities:
            self.add_module(name, ModalitySource(spec))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def gate(self, name: str, h: Tensor, modality: Modality) -> Tensor:
        """[B,K], exactly 0 where the modality has no valid token. h [B,K,n,d]."""
        condition = torch.stack([modality.age_s, modality.quality], dim=-1)
        gate = self.get_submodule(name).gate(torch.cat([h.mean(dim=-2), condition], dim=-1))
        return torch.where(modality.available, gate, torch.zeros_like(gate))

    def forward(self, h: Tensor, modalities: dict[str, Modality], tick_by: Rotation) -> tuple[Tensor, Tensor]:
        """h [B,K,n,d] -> (update [B,K,n,d], gates [B,K,M])."""
        n = h.shape[2]
        u = nn.functional.linear(h, self.q.weight).flatten(1, 2)
        gates = h.new_zeros(*h.shape[:2], self.modalities)
        total = torch.zeros_like(u)
        for name, modality in modalities.items():
            source = self.get_submodule(name)
            q = rotate(self.split_heads(u / source.temperature + self.q.bias), tick_by)
            k = rotate(self.split_heads(source.k(modality.encoded)), modality.by)
            v = self.split_heads(source.v(modality.encoded))
            mask = modality.valid.repeat_interleave(n, dim=1)
            gate = self.gate(name, h, modality)
            gates[..., modality.index] = gate
            heard = attend(q, k, v, mask, source.sink)
            total = total + gate.repeat_interleave(n, dim=1).unsqueeze(-1) * heard
        return self.o(total).unflatten(1, (-1, n)), gates


class FusionLayer(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm1 = layer_norm(spec.d)
        self.cross = GatedCrossAttention(spec)
        self.norm2 = layer_norm(spec.d)
        self.add_module("self", Attention(spec))
        self.norm3 = layer_norm(spec.d)
        self.ffn = FeedForward(spec.d, spec.ffn, spec.d)

    def forward(
        self,
        x: Tensor,
        modalities: dict[str, Modality],
        tick_by: Rotation,
        token_by: Rotation,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """x [B,K,n,d] -> (x, gates [B,K,M]); mask [B,K*n,K*n] of the self-attention."""
        update, gates = self.cross(self.norm1(x), modalities, tick_by)
        x = x + update
        h = self.norm2(x).flatten(1, 2)
        x = x + self.get_submodule("self")(h, h, mask, token_by).view_as(x)
        return x + self.ffn(self.norm3(x)), gates


class Fusion(NumberedLayers):
    """Fusion tokens of every tick, reading all modalities and the fusion tokens of earlier ticks."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__([FusionLayer(spec) for _ in range(spec.fusion_layers)])
        self.head_dim = spec.head_dim
        self.tokens = nn.Parameter(torch.zeros(spec.fusion_tokens, spec.d))
        self.norm = layer_norm(spec.d)

    def forward(self, drive: Drive, modalities: dict[str, Modality]) -> tuple[Tensor, Tensor, Tensor]:
        """-> (fused [B,K,n,d], residual stream after each layer [B,K,L,n,d], gates [B,K,L,M])."""
        batch, ticks = drive.tick_time_ns.shape
        n = self.tokens.shape[0]
        x = self.tokens.expand(batch, ticks, -1, -1)

        time_ns = drive.tick_time_ns.repeat_interleave(n, dim=1)
        zero = torch.zeros_like(time_ns)
        index = torch.arange(n, device=time_ns.device).repeat(ticks).expand_as(time_ns)
        dtype = self.tokens.dtype
        tick_by = rotation(Position(time_ns, zero, zero), drive.origin_ns, self.head_dim, dtype)
        token_by = rotation(Position(time_ns, zero, index), drive.origin_ns, self.head_dim, dtype)

        times = drive.tick_time_ns
        mask = within_window(times.unsqueeze(-1), times.unsqueeze(-2), drive.window_ns).tril()
        mask = mask.repeat_interleave(n, dim=1).repeat_interleave(n, dim=2)

        stream, gates = [], []
        for layer in self.layers():
            x, gate = layer(x, modalities, tick_by, token_by, mask)
            stream.append(x)
            gates.append(gate)
        return self.norm(x), torch.stack(stream, dim=2), torch.stack(gates, dim=2)


class Heads(nn.Module):
    """Linear read-outs of the mean fusion token, and the text side of retrieval."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.events = nn.Linear(spec.d, len(spec.events))
        self.scene = nn.Linear(spec.d, len(spec.scenes))
        self.motion = nn.Linear(spec.d, len(spec.motion))
        self.embed = nn.Linear(spec.d, spec.embedding_dim)
        self.embed_text = nn.Linear(spec.d, spec.embedding_dim)

    @staticmethod
    def unit(y: Tensor) -> Tensor:
        return y / y.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)


class Umm(nn.Module):
    """The whole model."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.adapter = nn.ModuleDict({name: ADAPTERS[name](spec) for name in spec.modalities})
        self.modality = ModalityEmbedding(spec)
        self.encoder = Encoder(spec)
        self.fusion = Fusion(spec)
        self.head = Heads(spec)
        self.decoder = Decoder(spec)

    def adapt(self, name: str, tokens: Tokens) -> Tensor:
        """Adapter output with the modality's embedding added: [B,N,d]."""
        return self.adapter[name](tokens) + self.modality.embedding[self.spec.modalities.index(name)]

    def tokens_rotation(self, tokens: Tokens, origin_ns: Tensor) -> Rotation:
        dtype = self.fusion.tokens.dtype
        return rotation(tokens.position, origin_ns, self.spec.head_dim, dtype)

    def long_context(self, tokens: Tokens, drive: Drive) -> Long | None:
        if not (self.spec.compress_ratio and drive.context_capacity):
            return None
        made_of = groups(tokens, self.spec)
        dtype = self.fusion.tokens.dtype
        by = rotation(made_of.position, drive.origin_ns, self.spec.head_dim, dtype)
        return Long(tokens, made_of, by, drive.window_ns, drive.context_capacity)

    def forward(self, drive: Drive) -> DriveOutput:
        adapted, encoded, modalities = {}, {}, {}
        for index, name in enumerate(self.spec.modalities):
            if name not in drive.tokens:
                continue
            tokens = drive.tokens[name]
            by = self.tokens_rotation(tokens, drive.origin_ns)
            mask = self.encoder.mask(tokens, drive.window_ns)
            adapted[name] = self.adapt(name, tokens)
            encoded[name] = self.encoder(adapted[name], mask, by, self.long_context(tokens, drive))
            modalities[name] = availability(index, encoded[name], by, tokens, drive)

        fused, fusion_layers, gates = self.fusion(drive, modalities)
        pooled = fused.mean(dim=-2)
        return DriveOutput(
            adapter=adapted,
            encoder=encoded,
            fusion_layers=fusion_layers,
            fused=fused,
            gates=gates,
            events=self.head.events(pooled).sigmoid(),
            scene=self.head.scene(pooled).softmax(dim=-1),
            motion=self.head.motion(pooled),
            embedding=self.head.unit(self.head.embed(pooled)),
        )

    def embed_text(self, text: bytes) -> Tensor:
        """Unit embedding [e] of a text query, encoded as one chunk in an empty context."""
        if not text:
            raise ValueError("an empty text has no embedding")
        values = torch.tensor(list(text), device=self.fusion.tokens.device).unsqueeze(0)
        zero = torch.zeros_like(values)
        tokens = Tokens(
            values=values,
            time_ns=zero,
            row=zero,
            col=torch.arange(len(text), device=values.device).unsqueeze(0),
            topic=zero,
            chunk=zero,
            tick=zero,
            present=torch.ones_like(values, dtype=torch.bool),
        )
        by = self.tokens_rotation(tokens, zero[:, 0])
        encoded = self.encoder(self.adapt("text", tokens), self.encoder.mask(tokens, 0), by)
        return self.head.unit(self.head.embed_text(encoded.mean(dim=-2)))[0]

    @torch.no_grad()
    def caption(self, fused: Tensor, steps_per_tick: int) -> list[CaptionTick]:
        """Greedy captions of one drive, fused [K,n,d], at most `steps_per_tick` tokens a tick.

        A caption reads the fused tokens of the tick it starts in, goes on over the next ticks, and
        is complete with EOS or after `caption_max` tokens; the tick after that starts a new one.
        """
        out: list[CaptionTick] = []
        prefix: list[int] = [BOS]
        started = 0
        for tick in range(fused.shape[0]):
            if not out or out[-1].complete:
                prefix, started = [BOS], tick
            tokens, logits, complete = [], [], False
            while len(tokens) < steps_per_tick and not complete:
                row = self.decoder(torch.tensor([prefix]), fused[started : started + 1])[0, -1]
                allowed = row.clone()
                allowed[BOS] = -math.inf
                tokens.append(int(allowed.argmax()))
                logits.append(row)
                prefix.append(tokens[-1])
                complete = tokens[-1] == EOS or len(prefix) - 1 == self.spec.caption_max
            rows = torch.stack(logits) if logits else fused.new_zeros(0, VOCABULARY)
            out.append(CaptionTick(started, torch.tensor(tokens, dtype=torch.int64), rows, complete))
        return out


def availability(index: int, encoded: Tensor, by: Rotation, tokens: Tokens, drive: Drive) -> Modality:
    """Per tick: which of a modality's tokens have arrived and lie in the window; the newest one's age."""
    tick_ns = drive.tick_time_ns.unsqueeze(-1)
    token_ns = tokens.time_ns.unsqueeze(-2)
    number = torch.arange(tick_ns.shape[1], device=tick_ns.device).view(1, -1, 1)
    arrived = tokens.tick.unsqueeze(-2) <= number
    valid = arrived & within_window(tick_ns, token_ns, drive.window_ns) & tokens.present.unsqueeze(-2)
    available = valid.any(dim=-1)
    age_ns = (tick_ns - token_ns).masked_fill(~valid, drive.window_ns + 1)
    newest_ns = age_ns.amin(dim=-1) if age_ns.shape[-1] else torch.zeros_like(drive.tick_time_ns)
    age_s = torch.where(available, newest_ns, torch.zeros_like(newest_ns)).double() / 1e9
    return Modality(
        index=index,
        encoded=encoded,
        by=by,
        valid=valid,
        available=available,
        age_s=age_s.to(encoded.dtype),
        quality=drive.quality[..., index],
    )


def load(path: str | Path) -> Umm:
    """Read a weights file: its specification and every tensor, names and shapes exactly."""
    with safe_open(str(path), framework="pt") as file:
        model = Umm(ModelSpec.from_json(file.metadata()[METADATA_KEY]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, strict=True)
    return model


def save(model: Umm, path: str | Path) -> None:
    """Write a weights file: f32 tensors, the specification in the metadata."""
    tensors = {name: t.float().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, str(path), metadata={METADATA_KEY: model.spec.to_json()})
