//! Telemetry: turns a signal's value into Fourier features of the normalised value.

/// Limit on normalised values, on both sides. A value beyond it says "too much" but not how much.
pub const CLAMP: f64 = 4.0;

/// A signal's normalisation: `offset` becomes 0, `offset + scale` becomes 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Subtracted.
    pub offset: f64,
    /// Divided by; not 0.
    pub scale: f64,
}

impl Scale {
    /// Returns `(x - offset) / scale`, clamped to [`CLAMP`].
    pub fn normalise(self, x: f64) -> f32 {
        ((x - self.offset) / self.scale).clamp(-CLAMP, CLAMP) as f32
    }
}

/// Writes `[v, sin(pi v), cos(pi v), sin(2 pi v), cos(2 pi v), sin(4 pi v), ...]` (Mildenhall et al. 2020,
/// arXiv:2003.08934, eq. 4); `out` is `[2 * octaves + 1]`. Angles are computed in `f64`, which the high octaves need.
pub fn fourier_into(value: f32, out: &mut [f32]) {
    let Some((first, rest)) = out.split_first_mut() else {
        return;
    };
    *first = value;
    let mut angle = std::f64::consts::PI * f64::from(value);
    for pair in rest.chunks_exact_mut(2) {
        let (sin, cos) = angle.sin_cos();
        pair[0] = sin as f32;
        pair[1] = cos as f32;
        angle *= 2.0;
    }
}
