//! The streaming log-mel front end against librosa, and against itself with the input cut in any way.

mod support;

use proptest::prelude::*;
use support::{Tensors, assert_close};
use umm::backend::parity::noise;
use umm::frontend::log_mel::{BANDS, LogMel, WINDOW};

fn frames(pieces: &mut dyn Iterator<Item = &[f32]>) -> Vec<f32> {
    let mut mel = LogMel::new();
    let mut out = Vec::new();
    for piece in pieces {
        mel.push(piece, &mut |frame| out.extend_from_slice(frame));
    }
    out
}

#[test]
fn agrees_with_librosa() {
    let fixture = Tensors::read("log_mel.safetensors");
    let pcm = fixture.f32("pcm");
    let actual = frames(&mut std::iter::once(pcm.as_slice()));
    assert_eq!(actual.len() / BANDS, fixture.shape("log_mel")[0]);
    assert_close("log-mel", &actual, &fixture.f32("log_mel"), 1e-4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cut_gives_the_one_shot_transform(n in 0_usize..4000, cuts in prop::collection::vec(0_usize..900, 1..20), seed in any::<u64>()) {
        let pcm = noise(seed, n);
        let whole = frames(&mut std::iter::once(pcm.as_slice()));
        prop_assert_eq!(whole.len() / BANDS, if n < WINDOW { 0 } else { (n - WINDOW) / 160 + 1 });
        let mut rest = pcm.as_slice();
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(frames(&mut pieces.into_iter()), whole);
    }
}
