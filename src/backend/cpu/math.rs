//! Loops the compiler turns into vector code, with the order of every sum fixed: the same bits on
//! every instruction set, because no sum is reassociated and no multiply-add is fused but where a
//! function's `FUSED` says so.

/// Partial sums a dot product is spread over.
const LANES: usize = 16;

/// `sum of a[i] * b[i]`, in [`LANES`] partial sums folded pairwise.
#[inline]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_blocks
        .remainder()
        .iter()
        .zip(b_blocks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    fold(lanes) + tail
}

/// `sum of f(x[i])`, in [`LANES`] partial sums folded pairwise.
#[inline(always)]
pub(super) fn sum_map(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sum = Sum::default();
    sum.add(x, f);
    sum.total()
}

/// A sum taken in pieces, in [`LANES`] partial sums; only the last piece may end within a block of as many.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    pub(super) lanes: [f32; LANES],
    pub(super) tail: f32,
}

impl Sum {
    /// Adds `f(x[i])`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "written as `dot` is")]
    pub(super) fn add(&mut self, x: &[f32], f: impl Fn(f32) -> f32) {
        let blocks = x.chunks_exact(LANES);
        self.tail += blocks.remainder().iter().map(|&v| f(v)).sum::<f32>();
        for block in blocks {
            for i in 0..LANES {
                self.lanes[i] += f(block[i]);
            }
        }
    }

    /// All that was added.
    #[inline(always)]
    pub(super) fn total(&self) -> f32 {
        fold(self.lanes) + self.tail
    }
}

/// The larger; the first where the second is not a number.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The largest element; minus infinity of none. What is not a number is passed over.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = x.chunks_exact(LANES);
    for (lane, v) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane = max(*lane, *v);
    }
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = max(lanes[i], block[i]);
        }
    }
    lanes.iter().fold(f32::NEG_INFINITY, |m, &v| max(m, v))
}

#[inline]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `a b + c`, rounded once where `FUSED`: only for functions compiled for processors that have the instruction, others
/// would call a slow routine.
#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// ln 2 in two parts, the first exact in few bits, so that the reduction of [`exp`] loses nothing.
pub(super) const LN2_HIGH: f32 = 0.693_359_4;
/// See [`LN2_HIGH`].
pub(super) const LN2_LOW: f32 = -2.121_944_4e-4;

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
pub(super) const ROUND: f32 = 12_582_912.0;

/// Coefficients of [`exp`], highest first.
pub(super) const EXP_POLYNOMIAL: [f32; 6] = [
    1.987_569_1e-4,
    1.398_2e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    0.166_666_66,
    0.5,
];

/// `e^x` for `x <= 88`; relative error below 2e-7, 0 below -87.
///
/// Range reduction by powers of two and a polynomial of degree 6 on `[-ln2/2, ln2/2]` (Cephes `expf`).
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = multiply_add::<FUSED>(clamped, LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = multiply_add::<FUSED>(n, -LN2_HIGH, clamped);
    let r = multiply_add::<FUSED>(n, -LN2_LOW, r);
    let mut p = EXP_POLYNOMIAL[0];
    for coefficient in &EXP_POLYNOMIAL[1..] {
        p = multiply_add::<FUSED>(p, r, *coefficient);
    }
    let y = multiply_add::<FUSED>(p * r, r, r) + 1.0;
    // The integer lies in the rounded value's lowest bits.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { y * power }
}

/// GELU, tanh approximation, in the form `x * sigmoid(2 u)`.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = TWO_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp::<false>(-u))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_exp<const FUSED: bool>() {
        let mut worst = 0.0_f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp::<FUSED>(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "worst relative error {worst}");
        assert_eq!(exp::<FUSED>(0.0), 1.0);
        assert_eq!(exp::<FUSED>(-100.0), 0.0);
        assert_eq!(exp::<FUSED>(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn exp_is_close_everywhere() {
        check_exp::<false>();
        check_exp::<true>();
    }

    #[test]
    fn gelu_is_close_to_its_definition() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let expected = super::super::plain::gelu(x);
            assert!((gelu(x) - expected).abs() < 1e-6, "gelu({x})");
        }
    }

    #[test]
    fn dot_handles_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32 + 1.0).collect();
            let naive: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - naive).abs() <= 1e-3 * naive.abs().max(1.0));
        }
    }
}
