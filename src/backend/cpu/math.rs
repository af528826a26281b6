//! Loops that the compiler turns into vector code. They give the same bits on every instruction set, because no sum is
//! reassociated and no multiply-add is fused unless a function's `FUSED` says so.

/// Partial sums a dot product is spread over.
const LANES: usize = 16;

/// Returns the sum of `a[i] * b[i]`, in [`LANES`] partial sums folded pairwise.
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

/// Returns each row's sum of `f(row, x[row][i])`, in [`LANES`] partial sums folded pairwise. Rows have the same length.
/// An addition waits for the one before it in its row, so several rows take little longer than one.
#[inline(always)]
pub(super) fn sums_of_rows<const N: usize>(
    x: [&[f32]; N],
    f: impl Fn(usize, f32) -> f32,
) -> [f32; N] {
    let mut sums = [Sum::default(); N];
    let x = x.map(|x| x.as_chunks::<LANES>());
    for block in 0..x[0].0.len() {
        for (row, sum) in sums.iter_mut().enumerate() {
            sum.add(&x[row].0[block], |v| f(row, v));
        }
    }
    let mut totals = [0.0; N];
    for (row, total) in totals.iter_mut().enumerate() {
        sums[row].add(x[row].1, |v| f(row, v));
        *total = sums[row].total();
    }
    totals
}

/// A sum taken in pieces, in [`LANES`] partial sums; only the last piece may end within a block of [`LANES`].
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

    /// Returns the sum of all that was added.
    #[inline(always)]
    pub(super) fn total(&self) -> f32 {
        fold(self.lanes) + self.tail
    }
}

/// Returns the larger; `a` if `b` is NaN.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Returns the largest element, or minus infinity if there is none. NaN is passed over.
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

/// Returns `a b + c`, rounded once if `FUSED`: only for functions compiled for processors that have the instruction;
/// others would call a slow routine.
#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
pub(super) const ROUND: f32 = 12_582_912.0;

/// Coefficients of `2^f` on `[-1/2, 1/2]`, highest power first: the polynomial of degree 5 with the least maximum
/// relative error (Remez exchange), 7.5e-8.
pub(super) const EXP2: [f32; 6] = [
    1.327_647_3e-3,
    9.675_541e-3,
    5.550_713e-2,
    0.240_221_2,
    0.693_146_94,
    1.000_000_1,
];

/// As [`EXP2`], of degree 3: 7.5e-5, far finer than bf16.
pub(super) const EXP2_NARROW: [f32; 4] = [5.517_167e-2, 0.242_611_13, 0.693_260_97, 0.999_928_06];

/// Largest magnitude of an exponent that [`exp2`] takes.
pub(super) const EXP2_RANGE: f32 = 126.0;

/// Returns `2^t` by `polynomial`. `t` is capped at [`EXP2_RANGE`]; below its negative the result is meaningless.
#[inline(always)]
pub(super) fn exp2<const FUSED: bool, const N: usize>(polynomial: &[f32; N], t: f32) -> f32 {
    let t = if t > EXP2_RANGE { EXP2_RANGE } else { t };
    let rounded = t + ROUND;
    let f = t - (rounded - ROUND);
    let mut p = polynomial[0];
    for coefficient in &polynomial[1..] {
        p = multiply_add::<FUSED>(p, f, *coefficient);
    }
    // The integer lies in the rounded value's lowest bits.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    p * power
}

/// Unnormalised weights of a softmax: `exp2(score * factor + offset)`, zero where that exponent is below `lowest`.
pub(super) struct SoftmaxWeight<const N: usize> {
    /// What a score is multiplied by: its scale times `log2(e)`.
    pub(super) factor: f32,
    /// Minus the reference: the largest exponent, or whatever else is subtracted from all exponents.
    pub(super) offset: f32,
    /// `2^f`, see [`EXP2`].
    pub(super) polynomial: &'static [f32; N],
    /// Least exponent whose weight is not zero.
    pub(super) lowest: f32,
}

impl<const N: usize> SoftmaxWeight<N> {
    /// Creates the weights of scores to the base of e, still to be multiplied by `scale`; there is no reference.
    #[inline(always)]
    pub(super) fn new(polynomial: &'static [f32; N], lowest: f32, scale: f32) -> Self {
        SoftmaxWeight {
            factor: scale * std::f32::consts::LOG2_E,
            offset: -0.0,
            polynomial,
            lowest,
        }
    }

    /// Returns the weight of `score`.
    #[inline(always)]
    pub(super) fn of<const FUSED: bool>(&self, score: f32) -> f32 {
        self.at::<FUSED>(multiply_add::<FUSED>(score, self.factor, self.offset))
    }

    /// Returns the weight of a sink's logit, which has no scale.
    #[inline(always)]
    pub(super) fn of_sink<const FUSED: bool>(&self, sink: f32) -> f32 {
        let t = multiply_add::<FUSED>(sink, std::f32::consts::LOG2_E, self.offset);
        self.at::<FUSED>(t)
    }

    /// Returns the weight of an exponent to the base of 2, from which the reference has been subtracted.
    #[inline(always)]
    pub(super) fn at<const FUSED: bool>(&self, t: f32) -> f32 {
        let weight = exp2::<FUSED, N>(self.polynomial, t);
        if t < self.lowest { 0.0 } else { weight }
    }
}

/// Computes GELU, tanh approximation, in the form `x * sigmoid(2 u)`: by [`EXP2`] for results in `f32`, by
/// [`EXP2_NARROW`] for those of products in bf16 and 8 bits.
#[inline(always)]
pub(super) fn gelu<const N: usize>(polynomial: &[f32; N], x: f32) -> f32 {
    let t = x * (GELU_LINEAR + GELU_CUBIC * (x * x));
    let t = if t < -EXP2_RANGE { -EXP2_RANGE } else { t };
    x / (1.0 + exp2::<false, N>(polynomial, t))
}

/// -2 sqrt(2 / pi) log2(e).
pub(super) const GELU_LINEAR: f32 = -2.302_208_2;

/// The same times 0.044715.
pub(super) const GELU_CUBIC: f32 = -0.102_943_24;

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the largest relative error of weights by `polynomial`, beyond what rounding the exponent costs.
    fn worst<const FUSED: bool, const N: usize>(polynomial: &'static [f32; N]) -> f64 {
        let weigh = SoftmaxWeight::new(polynomial, -EXP2_RANGE, 1.0);
        assert_eq!(weigh.of::<FUSED>(-100.0), 0.0);
        assert_eq!(weigh.of::<FUSED>(f32::NEG_INFINITY), 0.0);
        assert!(weigh.of::<FUSED>(f32::NAN).is_nan());
        assert_eq!(weigh.of::<FUSED>(-3.0), weigh.of_sink::<FUSED>(-3.0));
        let errors = (-870_000..=100).map(|i| {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let off = (f64::from(weigh.of::<FUSED>(x)) - exact).abs() / exact;
            // `x log2(e)` is rounded twice: the factor and the product.
            off - f64::from(x.abs()) * 2.0_f64.powi(-23)
        });
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn weights_are_close_everywhere() {
        assert!(worst::<true, 6>(&EXP2) < 3e-7);
        assert!(worst::<false, 6>(&EXP2) < 3e-7);
        assert!(worst::<true, 4>(&EXP2_NARROW) < 8e-5);
        assert!(worst::<false, 4>(&EXP2_NARROW) < 8e-5);
    }

    #[test]
    fn gelu_is_close_to_its_definition() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let expected = super::super::plain::gelu(x);
            assert!((gelu(&EXP2, x) - expected).abs() < 1e-6, "gelu({x})");
            let narrow = gelu(&EXP2_NARROW, x);
            assert!(
                (narrow - expected).abs() < 8e-5 * expected.abs() + 1e-6,
                "gelu({x})"
            );
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
