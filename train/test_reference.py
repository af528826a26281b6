"""Self-checks of the reference: python -m pytest train"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor

import make_fixtures as fixtures
from umm_reference import BOS, Drive, ModelSpec, Tokens, Umm, load, save
from umm_reference.layers import Position, attend, rotate, rotation

COMMITTED = Path(__file__).parent.parent / "tests" / "fixtures"
WINDOW = fixtures.WINDOW_NS


@pytest.fixture(scope="module")
def model() -> Umm:
    return fixtures.tiny_model().double()


@pytest.fixture(scope="module")
def drive() -> Drive:
    return fixtures.to_drive(*fixtures.drive_inputs())


def keep(tokens: Tokens, rows: Tensor) -> Tokens:
    """Only the marked tokens of a batch of one."""
    fields = {f.name: getattr(tokens, f.name) for f in dataclasses.fields(tokens)}
    return Tokens(**{name: x if x is None else x[:, rows] for name, x in fields.items()})


def without(drive: Drive, name: str) -> Drive:
    return dataclasses.replace(drive, tokens={m: t for m, t in drive.tokens.items() if m != name})


def until(drive: Drive, tick: int) -> Drive:
    """The drive as it was when `tick` ran."""
    tokens = {m: keep(t, t.tick[0] <= tick) for m, t in drive.tokens.items()}
    ticks = slice(None, tick + 1)
    return dataclasses.replace(
        drive,
        tokens=tokens,
        tick_time_ns=drive.tick_time_ns[:, ticks],
        quality=drive.quality[:, ticks],
    )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)


@torch.no_grad()
def test_attend_equals_pytorch_without_a_sink():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 8, generator=rng).double() for n, h in [(5, 6), (9, 2), (9, 2)])
    mask = torch.rand(2, 5, 9, generator=rng) < 0.5
    mask[..., 0] = True
    theirs = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask.unsqueeze(1), enable_gqa=True
    )
    ours = attend(q, k, v, mask, torch.full((6,), -math.inf))
    close(ours, theirs.transpose(1, 2).flatten(-2))


@torch.no_grad()
def test_a_sink_is_a_key_with_a_zero_value():
    q, k, v = (torch.randn(1, n, 1, 8).double() for n in (3, 4, 4))
    sink = torch.tensor([0.7]).double()
    column = sink.view(1, 1, 1).expand(1, 3, 1)
    scores = torch.cat([(q[:, :, 0] @ k[:, :, 0].mT) / math.sqrt(8), column], dim=-1)
    expected = scores.softmax(-1) @ torch.cat([v[:, :, 0], torch.zeros(1, 1, 8)], dim=1)
    close(attend(q, k, v, torch.ones(1, 3, 4, dtype=torch.bool), sink), expected)
    nothing = torch.zeros(1, 3, 4, dtype=torch.bool)
    for logit in (0.7, -math.inf):
        assert (attend(q, k, v, nothing, torch.tensor([logit]).double()) == 0).all()


def test_rotation_follows_its_formula():
    position = Position(torch.tensor([[123_456_789]]), torch.tensor([[3]]), torch.tensor([[5]]))
    origin, hd = 200_000_001, 16
    x = torch.randn(1, 1, 1, hd).double()
    y = x[0, 0, 0].clone()
    elapsed = (123_456_789 - origin) / 1e7
    pairs = [(i, i + 4, elapsed * 10_000 ** (-i / 4)) for i in range(4)]
    pairs += [(8 + i, 10 + i, 3 * 100 ** (-i / 2)) for i in range(2)]
    pairs += [(12 + i, 14 + i, 5 * 100 ** (-i / 2)) for i in range(2)]
    for a, b, angle in pairs:
        va, vb = float(x[0, 0, 0, a]), float(x[0, 0, 0, b])
        y[a] = va * math.cos(angle) - vb * math.sin(angle)
        y[b] = va * math.sin(angle) + vb * math.cos(angle)
    close(rotate(x, rotation(position, torch.tensor([origin]), hd, torch.float64))[0, 0, 0], y)


@torch.no_grad()
def test_encoder_mask_is_the_sentence_of_the_specification(model: Umm, drive: Drive):
    tokens = drive.tokens["telemetry"]
    mask = model.encoder.mask(tokens, WINDOW)[0]
    exact = 0
    for q in range(mask.shape[0]):
        for k in range(mask.shape[1]):
            age = int(tokens.time_ns[0, q] - tokens.time_ns[0, k])
            same_topic = tokens.topic[0, q] == tokens.topic[0, k]
            order = int(tokens.chunk[0, q] - tokens.chunk[0, k])
            assert mask[q, k] == (same_topic and (order == 0 or (order > 0 and 0 <= age <= WINDOW)))
            exact += bool(same_topic and order > 0 and age == WINDOW)
    assert exact > 0, "the drive has a key exactly one window old"


@torch.no_grad()
def test_gates_are_exactly_zero_without_valid_tokens(model: Umm, drive: Drive):
    gates = model(drive).gates[0]
    open_ticks = {
        "camera": {1, 2, 3, 6, 7},
        "audio": set(range(1, 8)),
        "text": {1, 2, 3, 7},
        "telemetry": set(range(1, 8)),
    }
    for index, name in enumerate(model.spec.modalities):
        for tick in range(fixtures.TICKS):
            is_open = gates[tick, :, index] > 0
            assert is_open.all() if tick in open_ticks[name] else not is_open.any(), (name, tick)
            assert (gates[tick, :, index] == 0).all() or is_open.all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["camera", "audio", "text", "telemetry"])
def test_a_closed_gate_equals_an_absent_modality(model: Umm, drive: Drive, name: str):
    closed = Umm(model.spec).double()
    closed.load_state_dict(model.state_dict())
    for layer in closed.fusion.layers():
        layer.cross.get_submodule(name).gate.bias.fill_(-math.inf)
    a, b = closed(drive), model(without(drive, name))
    close(a.fused, b.fused)
    close(a.gates, b.gates)
    assert not torch.allclose(a.fused, model(drive).fused)


@torch.no_grad()
@pytest.mark.parametrize("tick", range(fixtures.TICKS))
def test_later_input_changes_nothing_earlier(model: Umm, drive: Drive, tick: int):
    full, part = model(drive), model(until(drive, tick))
    close(full.fused[:, : tick + 1], part.fused)
    close(full.gates[:, : tick + 1], part.gates)
    for name, encoded in part.encoder.items():
        close(full.encoder[name][:, : encoded.shape[1]], encoded)


@torch.no_grad()
def test_padding_and_batching_change_nothing(model: Umm, drive: Drive):
    def pad(tokens: Tokens) -> Tokens:
        fields = {f.name: getattr(tokens, f.name) for f in dataclasses.fields(tokens)}
        twice = {k: x if x is None else torch.cat([x, x[:, :2]], dim=1) for k, x in fields.items()}
        twice["present"][:, -2:] = False
        return Tokens(**{k: x if x is None else torch.cat([x, x]) for k, x in twice.items()})

    batch = Drive(
        tokens={name: pad(tokens) for name, tokens in drive.tokens.items()},
        tick_time_ns=drive.tick_time_ns.repeat(2, 1),
        quality=torch.cat([drive.quality, 1.0 - drive.quality]),
        origin_ns=drive.origin_ns.repeat(2),
        window_ns=drive.window_ns,
    )
    together, alone = model(batch), model(drive)
    close(together.fused[:1], alone.fused)
    close(together.embedding[:1], alone.embedding)
    assert not torch.allclose(together.fused[1], alone.fused[0])


@torch.no_grad()
def test_greedy_captions_agree_with_one_teacher_forced_pass(model: Umm, drive: Drive):
    fused = model(drive).fused[0]
    captions = model.caption(fused, fixtures.CAPTION_TOKENS_PER_TICK)
    fixtures.check_captions(captions)
    for started in {c.started_tick for c in captions}:
        parts = [c for c in captions if c.started_tick == started]
        tokens = torch.cat([c.tokens for c in parts])
        assert all(not c.complete for c in parts[:-1])
        inputs = torch.cat([torch.tensor([BOS]), tokens[:-1]])
        logits = model.decoder(inputs.unsqueeze(0), fused[started : started + 1])[0]
        close(logits, torch.cat([c.logits for c in parts]))


@torch.no_grad()
def test_the_split_of_a_caption_over_ticks_does_not_matter(model: Umm, drive: Drive):
    memory = model(drive).fused[0, 1:2]
    spec = model.spec
    whole = model.caption(memory, spec.caption_max)[0]
    pieces = model.caption(memory.expand(spec.caption_max, -1, -1), 1)[: len(whole.tokens)]
    assert whole.tokens.tolist() == [int(c.tokens[0]) for c in pieces]


@torch.no_grad()
def test_heads_are_normalised(model: Umm, drive: Drive):
    out = model(drive)
    close(out.scene.sum(-1), torch.ones_like(out.scene[..., 0]))
    close(out.embedding.norm(dim=-1), torch.ones_like(out.embedding[..., 0]))
    close(model.embed_text(b"siren").norm(), torch.tensor(1.0).double())
    with pytest.raises(ValueError, match="empty"):
        model.embed_text(b"")


def test_every_parameter_gets_a_gradient(drive: Drive):
    model = fixtures.tiny_model().double()
    out = model(drive)
    loss = out.events.sum() + (out.scene**2).sum() + out.motion.sum() + out.embedding.sum()
    loss = loss + model.embed_text(b"siren").sum()
    tokens = torch.tensor([[BOS, 1, 2]]).expand(fixtures.TICKS, 3)
    loss = loss + model.decoder(tokens, out.fused[0]).logsumexp(-1).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_weights_survive_a_file(model: Umm, tmp_path: Path):
    save(model, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert again.spec == model.spec
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), again.state_dict()[name])


def test_specifications_are_checked():
    text = fixtures.TINY.to_json()
    assert ModelSpec.from_json(text) == fixtures.TINY
    for wrong in ['"head_dim":12', '"kv_heads":3', '"patch":15', '"format":2']:
        key = wrong.split(":")[0]
        right = f"{key}:{getattr(fixtures.TINY, key.strip(chr(34)))}"
        with pytest.raises(ValueError):
            ModelSpec.from_json(text.replace(right, wrong))


def test_log_mel_equals_a_plain_fourier_transform():
    arrays = fixtures.log_mel_fixture()
    pcm, filters = arrays["pcm"].astype(np.float64), arrays["mel_filters"].astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.lib.stride_tricks.sliding_window_view(pcm, 400)[::160]
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    expected = (np.log10(np.maximum(power @ filters.T, 1e-10)) + 4) / 4
    assert arrays["log_mel"].shape == expected.shape
    np.testing.assert_allclose(arrays["log_mel"], expected, atol=1e-6)


@pytest.mark.skipif(not COMMITTED.exists(), reason="no fixtures beside this checkout")
def test_committed_fixtures_are_what_this_code_makes():
    model = load(COMMITTED / "model" / "tiny.safetensors")
    made = {
        "model/long_drive": fixtures.long_fixture(fixtures.long_model(model))[0],
        "model/tiny_drive": fixtures.drive_fixture(model.double())[0],
        "log_mel": fixtures.log_mel_fixture(),
        "attention": fixtures.attention_fixture(),
        "rotary": fixtures.rotary_fixture(),
    }
    for name, arrays in made.items():
        committed = load_file(COMMITTED / f"{name}.safetensors")
        assert committed.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_allclose(committed[key], array, rtol=0, atol=1e-6, err_msg=f"{name} {key}")


@torch.no_grad()
def test_a_long_context_streams_and_is_nothing_where_it_is_empty(model: Umm, drive: Drive):
    long = fixtures.long_model(fixtures.tiny_model()).double()
    context = dataclasses.replace(drive, context_capacity=fixtures.LONG_CAPACITY)
    whole, off = long(context), long(drive)
    for name in whole.encoder:
        close(off.encoder[name], model(drive).encoder[name])
    assert not torch.equal(whole.fused, off.fused)
    for tick in range(1, fixtures.TICKS):
        part = long(until(context, tick))
        close(part.fused[0, tick], whole.fused[0, tick])


def test_single_precision_stays_close(model: Umm, drive: Drive):
    single = fixtures.tiny_model()
    tokens = {
        name: dataclasses.replace(t, values=t.values.float() if t.values.is_floating_point() else t.values)
        for name, t in drive.tokens.items()
    }
    with torch.no_grad():
        a = single(dataclasses.replace(drive, tokens=tokens, quality=drive.quality.float()))
        b = model(drive)
    for name in ("fused", "fusion_layers", "gates", "events", "scene", "motion", "embedding"):
        torch.testing.assert_close(getattr(a, name).double(), getattr(b, name), rtol=0, atol=1e-5)
    for name in b.encoder:
        torch.testing.assert_close(a.adapter[name].double(), b.adapter[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(a.encoder[name].double(), b.encoder[name], rtol=0, atol=1e-5)
