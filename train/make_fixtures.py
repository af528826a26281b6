"""Regenerate every numerical fixture of the Rust tests: python train/make_fixtures.py --out tests/fixtures

Deterministic: the same package versions give the same bytes. Everything is computed in f64 from f32
inputs and rounded to f32 once, at the end. The file layouts are described in train/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save as serialize
from torch import Tensor

from umm_reference import BOS, EOS, MODALITIES, CaptionTick, Drive, DriveOutput, ModelSpec, Tokens, Umm
from umm_reference.layers import Position, rotate, rotation
from umm_reference.spec import METADATA_KEY

Arrays = dict[str, np.ndarray]

MS = 1_000_000
ORIGIN_NS = 1_700_000_000_123_456_789
PERIOD_NS = 100 * MS
WINDOW_NS = 250 * MS
TICKS = 8
CAPTION_TOKENS_PER_TICK = 5
MIN_LOGIT_GAP = 1e-3
TEXT_QUERY = "siren behind the bus"

TINY = ModelSpec(
    name="tiny",
    d=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=64,
    encoder_layers=2,
    fusion_layers=2,
    fusion_tokens=4,
    decoder_layers=1,
    embedding_dim=16,
    image_size=32,
    patch=16,
    mel_bins=80,
    mel_stack=4,
    fourier=8,
    caption_max=12,
    modalities=MODALITIES,
    signals=("speed_mps", "steering_deg", "yaw_rate_rps"),
    events=("siren", "ambulance", "braking"),
    scenes=("city", "highway"),
    motion=("speed_mps", "yaw_rate_rps"),
    trained=False,
    seed=7,
)

# The tiny model with a long context: the window has left the drive's first chunks behind by its end.
LONG = dataclasses.replace(TINY, compress_ratio=2, compress_block=1, compress_top_k=1)
LONG_CAPACITY = 8

# The tiny model's inputs through layers wide enough to be rounded in bf16 and 8 bits. Its weights are not stored: both sides
# make them from `noise`.
SMALL = dataclasses.replace(TINY, name="small", d=128, head_dim=32, ffn=256)

# Added to decoder.bias, so that one caption ends with EOS, another runs to caption_max, and BOS,
# which must never be chosen, sometimes has the greatest logit.
EOS_BIAS = 4.5
BOS_BIAS = 2.0

# Captions repeat one byte unless the decoder's positions outweigh its (tied) embedding.
EMBEDDING_SCALE = {"decoder.embedding": 0.4, "decoder.position": 1.4}

TOPICS = ("/camera/front", "/mic", "/v2x/text", "/can", "/imu")
CAMERA, MIC, TEXT, CAN, IMU = range(len(TOPICS))
TOPIC_MODALITY = ("camera", "audio", "text", "telemetry", "telemetry")


@dataclass(frozen=True)
class Chunk:
    """One message's tokens. Times are nanoseconds since ORIGIN_NS.

    camera: one time, no payload. audio: a time per token. text: one time, `text`.
    telemetry: one time, `signals` with normalised values.
    """

    tick: int
    topic: int
    since_origin_ns: tuple[int, ...]
    text: str = ""
    signals: tuple[tuple[str, float], ...] = ()

    @property
    def modality(self) -> str:
        return TOPIC_MODALITY[self.topic]


def ms(*times: float) -> tuple[int, ...]:
    return tuple(round(t * MS) for t in times)


def can(tick: int, at_ms: float, speed: float, steering: float) -> Chunk:
    return Chunk(tick, CAN, ms(at_ms), signals=(("speed_mps", speed), ("steering_deg", steering)))


def imu(tick: int, at_ms: float, yaw_rate: float) -> Chunk:
    return Chunk(tick, IMU, ms(at_ms), signals=(("yaw_rate_rps", yaw_rate),))


# Tick k is at k * 100 ms, the window is 250 ms. In processing order.
SCENARIO = (
    # tick 0: nothing has ever arrived, every gate is 0
    Chunk(1, CAMERA, ms(33.333333)),
    Chunk(1, MIC, ms(10.000137, 50.000137, 90.000137)),
    can(1, 20, 0.31, -0.05),
    can(1, -15, 0.29, -0.02),  # folded late: before the origin and older than the chunk before it
    can(1, 70, 0.35, 0.08),
    Chunk(1, TEXT, ms(60.5), text="bus → left"),
    imu(1, 50, -0.4),  # exactly one window old at tick 3: still valid
    Chunk(2, CAMERA, ms(133.333333)),
    Chunk(2, MIC, ms(130.000137, 170.000137, 210.000137)),  # the last token lies after the tick
    imu(2, 200, 0.12),  # exactly at the tick
    Chunk(3, MIC, ms(250.000137, 290.000137)),
    can(3, 270, 0.5, 0.2),
    can(3, 110, 0.41, 0.15),  # folded late: sees keys that are out of the tick's window, not of its own
    # tick 4: no input at all; camera and text have aged out until ticks 6 and 7
    Chunk(5, MIC, ms(450.000137, 490.000137)),
    imu(5, 450, 1.0),  # exactly one window after the imu's last
    can(5, 480, 0.62, -0.9),
    Chunk(6, CAMERA, ms(533.333331)),
    imu(6, 560, -0.77),
    Chunk(7, MIC, ms(610.000137)),
    Chunk(7, TEXT, ms(660.25), text="clear"),
    can(7, 650, 0.0, -1.25),
    can(7, 699.999999, 0.04, -1.1),
)


def tiny_model() -> Umm:
    """The tiny model with random weights large enough that every path matters."""
    rng = np.random.default_rng(TINY.seed)
    model = Umm(TINY)
    state = model.state_dict()
    for name in sorted(state):
        state[name] = torch.from_numpy(lively(rng, name, tuple(state[name].shape)))
    state["decoder.bias"][EOS] += EOS_BIAS
    state["decoder.bias"][BOS] += BOS_BIAS
    model.load_state_dict(state)
    return model.eval()


def lively(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values for one parameter, by its kind."""
    normal = rng.standard_normal(shape)
    kind = name.split(".")
    if kind[-1] == "temperature":
        value = 2.0 ** np.tanh(normal)
    elif kind[-1] == "sink":
        value = normal
    elif "norm" in kind[-2] and kind[-1] == "weight":
        value = 1.0 + 0.2 * normal
    elif "gate" in kind:
        value = normal * (0.5 if kind[-1] == "bias" else 2.0 / math.sqrt(TINY.d))
    elif kind[-1] == "bias":
        value = 0.2 * normal
    elif kind[-1] == "weight":
        value = normal / math.sqrt(shape[-1])
    else:  # embeddings and positions
        value = EMBEDDING_SCALE.get(name, 0.7) * normal
    return value.astype(np.float32)


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """f32 in [-1, 1), the same as `noise` of the runtime (SplitMix64)."""
    n = math.prod(shape)
    z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    return (z.astype(np.float32) / np.float32(1 << 23) - np.float32(1)).reshape(shape)


def small_model() -> Umm:
    """The small model; `tests/model_golden.rs` makes the same weights."""
    model = Umm(SMALL)
    state = model.state_dict()
    for seed, name in enumerate(sorted(state)):
        shape = tuple(state[name].shape)
        offset, scale = small_scale(name, shape)
        value = np.float32(offset) + np.float32(scale) * noise(seed, shape)
        state[name] = torch.from_numpy(value)
    model.load_state_dict(state)
    return model.eval()


def small_scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Middle and half range of one parameter, by its kind."""
    kind = name.split(".")
    if kind[-1] == "temperature" or ("norm" in kind[-2] and kind[-1] == "weight"):
        return 1.0, 0.3
    if kind[-1] == "sink":
        return 0.0, 1.5
    if "gate" in kind:
        return 0.0, 0.8 if kind[-1] == "bias" else 0.3
    if kind[-1] == "bias":
        return 0.0, 0.3
    if kind[-1] == "weight":  # of variance 1 / inputs
        return 0.0, math.sqrt(3.0 / shape[-1])
    return 0.0, 1.2  # embeddings and positions


def chunk_arrays(rng: np.random.Generator, chunk: Chunk) -> Arrays:
    """A chunk as it is stored: times, rows, columns and features."""
    times, n = chunk.since_origin_ns, len(chunk.since_origin_ns)
    row = col = np.zeros(1, dtype=np.int64)
    if chunk.modality == "camera":
        n = TINY.grid**2
        row, col = np.divmod(np.arange(n), TINY.grid)
        features = {"features": 0.8 * rng.standard_normal((n, TINY.patch_dim))}
    elif chunk.modality == "audio":
        features = {"features": 0.5 * rng.standard_normal((n, TINY.audio_dim)) - 0.3}
    elif chunk.modality == "text":
        data = chunk.text.encode()
        n = len(data)
        col = np.arange(n)
        features = {"bytes": np.array(list(data))}
    else:
        n = len(chunk.signals)
        features = {
            "signal": np.array([TINY.signals.index(name) for name, _ in chunk.signals]),
            "value": np.array([value for _, value in chunk.signals]),
        }
    meta = {
        "tick": [chunk.tick],
        "topic": [chunk.topic],
        "modality": [TINY.modalities.index(chunk.modality)],
        "time_ns": np.broadcast_to(ORIGIN_NS + np.array(times), n),
        "row": np.broadcast_to(row, n),
        "col": np.broadcast_to(col, n),
    }
    return {name: stored(value) for name, value in (meta | features).items()}


def drive_inputs() -> tuple[list[Arrays], np.ndarray, np.ndarray]:
    """The stored chunks, the tick times [K] and the qualities [K,4]."""
    rng = np.random.default_rng([TINY.seed, 1])
    chunks = [chunk_arrays(rng, chunk) for chunk in SCENARIO]
    tick_time_ns = ORIGIN_NS + PERIOD_NS * np.arange(TICKS)
    quality = rng.uniform(0.2, 1.0, (TICKS, len(TINY.modalities)))
    return chunks, stored(tick_time_ns), stored(quality)


def to_drive(chunks: list[Arrays], tick_time_ns: np.ndarray, quality: np.ndarray) -> Drive:
    """The stored inputs as a batch of one drive in f64."""
    tokens = {}
    for index, name in enumerate(TINY.modalities):
        mine = [(c, chunk) for c, chunk in enumerate(chunks) if chunk["modality"][0] == index]

        def column(key: str, mine: list[tuple[int, Arrays]] = mine) -> Tensor:
            return torch.from_numpy(np.concatenate([chunk[key] for _, chunk in mine])).unsqueeze(0)

        def spread(values: list[int], mine: list[tuple[int, Arrays]] = mine) -> Tensor:
            sizes = [len(chunk["time_ns"]) for _, chunk in mine]
            return torch.from_numpy(np.repeat(np.array(values), sizes)).unsqueeze(0)

        values = column({"text": "bytes", "telemetry": "value"}.get(name, "features"))
        tokens[name] = Tokens(
            values=values if name == "text" else values.double(),
            signal=column("signal") if name == "telemetry" else None,
            time_ns=column("time_ns"),
            row=column("row"),
            col=column("col"),
            topic=spread([chunk["topic"][0] for _, chunk in mine]),
            tick=spread([chunk["tick"][0] for _, chunk in mine]),
            chunk=spread([c for c, _ in mine]),
            present=torch.ones_like(column("row"), dtype=torch.bool),
        )
    return Drive(
        tokens=tokens,
        tick_time_ns=torch.from_numpy(tick_time_ns).unsqueeze(0),
        quality=torch.from_numpy(quality).double().unsqueeze(0),
        origin_ns=torch.tensor([ORIGIN_NS]),
        window_ns=WINDOW_NS,
    )


def drive_fixture(model: Umm) -> tuple[Arrays, dict[str, str]]:
    """tiny_drive.safetensors: inputs and outputs of the scenario."""
    chunks, tick_time_ns, quality = drive_inputs()
    with torch.no_grad():
        drive = to_drive(chunks, tick_time_ns, quality)
        out = model(drive)
        captions = model.caption(out.fused[0], CAPTION_TOKENS_PER_TICK)
        query = model.embed_text(TEXT_QUERY.encode())
    check_captions(captions)

    arrays = {f"chunk.{c}.{key}": value for c, chunk in enumerate(chunks) for key, value in chunk.items()}
    for k in range(TICKS):
        arrays[f"tick.{k}.time_ns"] = tick_time_ns[k : k + 1]
        arrays[f"tick.{k}.quality"] = quality[k]
    arrays |= chunk_outputs(drive, out, len(chunks)) | tick_outputs(out, captions)
    arrays["text_query.bytes"] = stored(list(TEXT_QUERY.encode()))
    arrays["text_query.embedding"] = stored(query)
    metadata = {
        "origin_ns": ORIGIN_NS,
        "period_ns": PERIOD_NS,
        "window_ns": WINDOW_NS,
        "ticks": TICKS,
        "chunks": len(chunks),
        "caption_tokens_per_tick": CAPTION_TOKENS_PER_TICK,
        "topics": TOPICS,
        "captions": [
            {"started_tick": c.started_tick, "tokens": c.tokens.tolist(), "complete": c.complete}
            for c in captions
        ],
    }
    return arrays, {key: json.dumps(value, separators=(",", ":")) for key, value in metadata.items()}


def long_model(model: Umm) -> Umm:
    """The same weights with a long context of random kernels."""
    long = Umm(LONG)
    state = dict(model.state_dict())
    rng = np.random.default_rng([LONG.seed, 5])
    for name, kernel in sorted(long.state_dict().items()):
        if ".compress." in name:
            state[name] = torch.from_numpy((0.5 + 0.5 * rng.standard_normal(kernel.shape)).astype(np.float32))
    long.load_state_dict(state)
    return long.eval()


def long_fixture(model: Umm) -> tuple[Arrays, dict[str, str]]:
    """long_drive.safetensors: kernels, and what the scenario's encoder and fusion give with them."""
    drive = to_drive(*drive_inputs())
    drive.context_capacity = LONG_CAPACITY
    with torch.no_grad():
        out = model.double()(drive)
    arrays = {name: stored(t) for name, t in model.state_dict().items() if ".compress." in name}
    arrays |= {k: v for k, v in chunk_outputs(drive, out, len(SCENARIO)).items() if k.endswith("encoder")}
    arrays |= {f"out.tick.{k}.fusion": stored(out.fused[0, k]) for k in range(TICKS)}
    metadata = {METADATA_KEY: LONG.to_json(), "context_capacity": str(LONG_CAPACITY)}
    return arrays, metadata


def small_fixture() -> Arrays:
    """small_drive.safetensors: what the scenario gives in the small model, but for captions."""
    model = small_model().double()
    with torch.no_grad():
        drive = to_drive(*drive_inputs())
        out = model(drive)
        query = model.embed_text(TEXT_QUERY.encode())
    arrays = {k: v for k, v in chunk_outputs(drive, out, len(SCENARIO)).items() if k.endswith("encoder")}
    arrays |= {k: v for k, v in tick_outputs(out, None).items() if not k.endswith("fusion_layers")}
    return arrays | {"text_query.embedding": stored(query)}


def chunk_outputs(drive: Drive, out: DriveOutput, chunks: int) -> Arrays:
    arrays = {}
    for c in range(chunks):
        for name, tokens in drive.tokens.items():
            rows = tokens.chunk[0] == c
            if rows.any():
                arrays[f"out.chunk.{c}.adapter"] = stored(out.adapter[name][0, rows])
                arrays[f"out.chunk.{c}.encoder"] = stored(out.encoder[name][0, rows])
    return arrays


def tick_outputs(out: DriveOutput, captions: list[CaptionTick] | None) -> Arrays:
    arrays = {}
    for k in range(TICKS):
        results = {
            "fusion_layers": out.fusion_layers,
            "fusion": out.fused,
            "gates": out.gates,
            "events": out.events,
            "scene": out.scene,
            "motion": out.motion,
            "embedding": out.embedding,
        }
        arrays |= {f"out.tick.{k}.{name}": stored(value[0, k]) for name, value in results.items()}
        if captions is not None:
            arrays[f"out.tick.{k}.caption"] = stored(captions[k].tokens)
            arrays[f"out.tick.{k}.caption_logits"] = stored(captions[k].logits)
    return arrays


def check_captions(captions: list[CaptionTick]) -> None:
    """The captions must exercise both endings and the BOS rule, and have no near ties."""
    logits = torch.cat([c.logits for c in captions]).clone()
    bos_on_top = (logits.argmax(dim=-1) == BOS).any()
    logits[:, BOS] = -math.inf
    top = logits.topk(2, dim=-1).values
    gap = float((top[:, 0] - top[:, 1]).min())
    ends = {int(c.tokens[-1]) == EOS for c in captions if c.complete}
    restarts = len({c.started_tick for c in captions})
    if gap <= MIN_LOGIT_GAP or ends != {True, False} or restarts < 3 or not bos_on_top:
        raise SystemExit(
            f"captions do not cover the cases: gap {gap:.4g}, endings by EOS {ends}, "
            f"{restarts} captions, BOS on top {bool(bos_on_top)}; choose EOS_BIAS and BOS_BIAS anew"
        )


def log_mel_fixture() -> Arrays:
    """A chirp in noise with a silent and a clipped stretch, and librosa's log-mel of it."""
    rate, samples = 16_000, 7_840
    rng = np.random.default_rng([TINY.seed, 2])
    t = np.arange(samples) / rate
    chirp = 0.5 * np.sin(2 * np.pi * (200.0 * t + 0.5 * 15_000.0 * t**2))
    pcm = chirp + 0.02 * rng.standard_normal(samples)
    pcm[2_400:3_600] = 0.0
    pcm[5_600:6_400] = np.clip(6.0 * pcm[5_600:6_400], -1.0, 1.0)
    pcm = pcm.astype(np.float32)

    filters = librosa.filters.mel(
        sr=rate, n_fft=400, n_mels=80, fmin=0.0, fmax=8_000.0, htk=False, norm="slaney", dtype=np.float64
    )
    spectrum = librosa.stft(
        pcm.astype(np.float64), n_fft=400, hop_length=160, win_length=400, window="hann", center=False
    )
    mel = filters @ np.abs(spectrum) ** 2.0
    log_mel = (np.log10(np.maximum(mel, 1e-10)) + 4.0) / 4.0
    return {"pcm": pcm, "log_mel": stored(log_mel.T), "mel_filters": stored(filters)}


def attention_fixture() -> Arrays:
    """PyTorch's own masked grouped-query attention, which has no sink (a sink logit of -inf)."""
    rng = np.random.default_rng([TINY.seed, 3])
    arrays = {}
    sizes = [(1, 1, 1, 1, 8), (3, 7, 4, 2, 8), (2, 17, 4, 4, 8), (5, 16, 6, 2, 8), (3, 33, 4, 1, 16)]
    for case, (n, m, heads, kv_heads, head_dim) in enumerate(sizes):
        q = stored(1.5 * rng.standard_normal((n, heads, head_dim)))
        k = stored(1.5 * rng.standard_normal((m, kv_heads, head_dim)))
        v = stored(rng.standard_normal((m, kv_heads, head_dim)))
        mask = rng.random((n, m)) < 0.6
        mask[:, 0] |= ~mask.any(axis=1)
        out = F.scaled_dot_product_attention(
            *(torch.from_numpy(x).double().transpose(0, 1).unsqueeze(0) for x in (q, k, v)),
            attn_mask=torch.from_numpy(mask),
            enable_gqa=True,
        )
        values = {
            "q": q,
            "k": k,
            "v": v,
            "mask": mask.astype(np.uint8),
            "out": stored(out[0].transpose(0, 1)),
        }
        arrays |= {f"case.{case}.{name}": value for name, value in values.items()}
    return arrays


def rotary_fixture() -> Arrays:
    """Rotary positions from a second before the origin to a day after it, where f32 angles fail."""
    rng = np.random.default_rng([TINY.seed, 4])
    since_ms = np.array([0, -1_000, 10, 100, 12_345, 600_000, 36_000_000, 86_400_000])
    n = len(since_ms)
    position = {
        "origin_ns": stored([ORIGIN_NS]),
        "time_ns": stored(ORIGIN_NS + since_ms * MS + rng.integers(0, MS, n)),
        "row": stored(rng.integers(0, 16, n)),
        "col": stored([0, 1, 7, 15, 63, 64, 200, 511]),
    }
    t = {name: torch.from_numpy(value) for name, value in position.items()}
    where = Position(*(t[name].unsqueeze(0) for name in ("time_ns", "row", "col")))
    arrays = dict(position)
    for case, (heads, head_dim) in enumerate([(1, 8), (2, 16), (1, 64)]):
        x = stored(rng.standard_normal((n, heads, head_dim)))
        by = rotation(where, t["origin_ns"], head_dim, torch.float64)
        arrays[f"case.{case}.x"] = x
        arrays[f"case.{case}.out"] = stored(rotate(torch.from_numpy(x).double().unsqueeze(0), by)[0])
    return arrays


def stored(values: object) -> np.ndarray:
    """As stored: integers as i64, everything else as f32."""
    array = np.asarray(values)
    kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
    return np.ascontiguousarray(array, dtype=kind)


def write(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write a safetensors file with its metadata keys in order (the library leaves their order open)."""
    data = serialize(arrays, metadata=metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    print(f"{path}  {path.stat().st_size} bytes, {len(arrays)} tensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory, e.g. tests/fixtures")
    out = parser.parse_args().out
    torch.set_num_threads(1)

    model = tiny_model()
    arrays, metadata = long_fixture(long_model(model))
    write(out / "model" / "long_drive.safetensors", arrays, metadata)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write(out / "model" / "tiny.safetensors", weights, {METADATA_KEY: TINY.to_json()})
    arrays, metadata = drive_fixture(model.double())
    write(out / "model" / "tiny_drive.safetensors", arrays, metadata)
    write(out / "model" / "small_drive.safetensors", small_fixture(), {METADATA_KEY: SMALL.to_json()})
    write(out / "log_mel.safetensors", log_mel_fixture(), {})
    write(out / "attention.safetensors", attention_fixture(), {})
    write(out / "rotary.safetensors", rotary_fixture(), {})


if __name__ == "__main__":
    main()
