//! The course of the sample drive: what is true, and what a model would say, `t` seconds after its start.

/// Noise in 0..1, the same for the same arguments (a hash: SplitMix64's finaliser).
pub fn noise(a: u64, b: u64) -> f64 {
    let mut z = a
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

pub fn between(t: f64, from: f64, to: f64) -> bool {
    (from..to).contains(&t)
}

/// 0..1, rising at `from` and falling at `to`, each within `edge` seconds.
pub fn bump(t: f64, from: f64, to: f64, edge: f64) -> f64 {
    let rise = 1.0 / (1.0 + (-(t - from) / edge * 4.0).exp());
    let fall = 1.0 / (1.0 + ((t - to) / edge * 4.0).exp());
    rise * fall
}

pub fn event_truth(event: usize, t: f64) -> bool {
    match event {
        0 => between(t, 8.0, 13.4),
        1 => between(t, 9.8, 13.0),
        2 => between(t, 4.0, 11.2) || between(t, 16.0, 21.5),
        3 => between(t, 10.4, 12.6),
        _ => between(t, 1.6, 3.4) || between(t, 14.0, 15.2),
    }
}

pub fn event_score(event: usize, t: f64, tick: u64) -> f64 {
    let lag = 0.25;
    let truth = match event {
        0 => bump(t, 8.0 + lag, 13.6, 0.5),
        1 => 0.85 * bump(t, 10.2 + lag, 13.1, 0.6),
        2 => bump(t, 4.1 + lag, 11.3, 0.5).max(0.9 * bump(t, 16.2 + lag, 21.4, 0.4)),
        3 => bump(t, 10.5 + lag, 12.8, 0.3).max(0.35 * bump(t, 19.0, 19.8, 0.3)),
        _ => bump(t, 1.7 + lag, 3.5, 0.3).max(bump(t, 14.1 + lag, 15.2, 0.3)),
    };
    (0.04 + 0.9 * truth + 0.07 * (noise(tick, event as u64) - 0.4)).clamp(0.001, 0.999)
}

pub fn scene_truth(t: f64) -> usize {
    if t < 13.8 { 0 } else { 1 }
}

pub fn speed_mps(t: f64) -> f64 {
    let city = 11.0 - 7.0 * bump(t, 1.2, 3.2, 0.8) - 8.0 * bump(t, 10.5, 13.4, 0.7);
    city + 15.0 / (1.0 + (-(t - 16.5) * 1.1).exp())
}

pub fn yaw_rate_rps(t: f64) -> f64 {
    0.32 * bump(t, 1.7, 3.3, 0.5) - 0.18 * bump(t, 14.0, 15.1, 0.5)
}

pub fn camera_missing(t: f64) -> bool {
    between(t, 15.3, 16.6)
}
