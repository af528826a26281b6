"""The caption decoder: a small causal transformer over bytes that reads one tick's fused tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Attention, FeedForward, NumberedLayers, layer_norm
from .spec import ModelSpec

BOS, EOS, VOCABULARY = 256, 257, 258


class DecoderLayer(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.norm1 = layer_norm(spec.d)
        self.add_module("self", Attention(spec))
        self.norm2 = layer_norm(spec.d)
        self.cross = Attention(spec)
        self.norm3 = layer_norm(spec.d)
        self.ffn = FeedForward(spec.d, spec.ffn, spec.d)

    def forward(self, x: Tensor, memory: Tensor, causal: Tensor, everything: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.get_submodule("self")(h, h, causal, None)
        x = x + self.cross(self.norm2(x), memory, everything, None)
        return x + self.ffn(self.norm3(x))


class Decoder(NumberedLayers):
    """Causal byte decoder over the fused tokens of one tick; output weights are the embedding's."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__([DecoderLayer(spec) for _ in range(spec.decoder_layers)])
        self.embedding = nn.Parameter(torch.zeros(VOCABULARY, spec.d))
        self.position = nn.Parameter(torch.zeros(spec.caption_max, spec.d))
        self.norm = layer_norm(spec.d)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """tokens [B,S] (first BOS), memory [B,n,d] -> logits [B,S,VOCABULARY] of each next token."""
        batch, steps = tokens.shape
        x = self.embedding[tokens] + self.position[:steps]
        causal = torch.ones(batch, steps, steps, dtype=torch.bool, device=x.device).tril()
        everything = torch.ones(batch, steps, memory.shape[1], dtype=torch.bool, device=x.device)
        for layer in self.layers():
            x = layer(x, memory, causal, everything)
        return self.norm(x) @ self.embedding.T + self.bias


@dataclass
class CaptionTick:
    """What one tick adds to a caption: tokens [steps] and the logits [steps, VOCABULARY] behind them."""

    started_tick: int
    tokens: Tensor
    logits: Tensor
    complete: bool
