"""The model specification: the JSON stored in a weights file under the metadata key `umm.spec`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

MODALITIES = ("camera", "audio", "text", "telemetry")
METADATA_KEY = "umm.spec"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Sizes and label names of one model. Field order is the order in the JSON."""

    format: int = 1
    name: str
    d: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    encoder_layers: int
    fusion_layers: int
    fusion_tokens: int
    decoder_layers: int
    embedding_dim: int
    image_size: int
    patch: int
    mel_bins: int
    mel_stack: int
    fourier: int
    caption_max: int
    modalities: tuple[str, ...]
    signals: tuple[str, ...]
    events: tuple[str, ...]
    scenes: tuple[str, ...]
    motion: tuple[str, ...]
    trained: bool = False
    seed: int = 0
    # A long context: tokens pooled to one, pooled tokens a block, blocks attended. All 0, and left out of the JSON, without.
    compress_ratio: int = 0
    compress_block: int = 0
    compress_top_k: int = 0

    def __post_init__(self) -> None:
        if self.format != 1:
            raise ValueError(f"spec format {self.format} is unknown; this package reads format 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 8:
            raise ValueError(f"head_dim {self.head_dim} is no multiple of 8 (rotary sections)")
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch {self.patch}")
        sizes = (self.compress_ratio, self.compress_block, self.compress_top_k)
        if any(sizes) and not all(sizes):
            raise ValueError(f"compress_ratio, compress_block and compress_top_k are {sizes}: all or none")
        unknown = set(self.modalities) - set(MODALITIES)
        if unknown or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities {self.modalities} must be distinct members of {MODALITIES}")

    @property
    def grid(self) -> int:
        """Patches along one image side."""
        return self.image_size // self.patch

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch; element (y, x, c) lies at (y * patch + x) * 3 + c."""
        return self.patch * self.patch * 3

    @property
    def audio_dim(self) -> int:
        """Length of a stack of log-mel frames, frame by frame."""
        return self.mel_bins * self.mel_stack

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Parse the metadata JSON; unknown and missing keys are refused."""
        fields = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    def to_json(self) -> str:
        """The metadata JSON, compact, in field order."""
        fields = dataclasses.asdict(self)
        if not self.compress_ratio:
            fields = {name: value for name, value in fields.items() if not name.startswith("compress_")}
        return json.dumps(fields, separators=(",", ":"))
