"""Whole-sequence PyTorch reference of the umm model.

Every operation is written over all tokens of a drive at once, with dense masks in place of ring
caches. A streaming runtime must give the same numbers; this package says what those numbers are.
"""

from .adapters import Tokens
from .decoder import BOS, EOS, VOCABULARY, CaptionTick
from .model import Drive, DriveOutput, Umm, load, save
from .spec import MODALITIES, ModelSpec

__all__ = [
    "BOS",
    "EOS",
    "MODALITIES",
    "VOCABULARY",
    "CaptionTick",
    "Drive",
    "DriveOutput",
    "ModelSpec",
    "Tokens",
    "Umm",
    "load",
    "save",
]
