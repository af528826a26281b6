//! Rotary positions (Su et al. 2021, arXiv:2104.09864) in three sections of a head: half of its dimensions
//! rotate with capture time, a quarter with the patch row, a quarter with the patch column.
//!
//! Only differences of positions affect a score, so times may be counted from any origin; counting from the
//! epoch's origin keeps the `f64` angles exact.

/// One unit of rotary time, 10 ms, in nanoseconds.
const TIME_UNIT_NS: f64 = 1e7;
const TIME_BASE: f64 = 10_000.0;
const GRID_BASE: f64 = 100.0;

/// Where a token is in time and within its sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Capture time.
    pub time_ns: i64,
    /// Patch row; 0 where there is none.
    pub row: u16,
    /// Patch column, byte index of a text, or index of a fusion token; 0 where there is none.
    pub col: u16,
}

/// Angular frequencies of one head's pairs of dimensions.
#[derive(Clone, Debug)]
pub struct Rotary {
    head_dim: usize,
    time: Vec<f64>,
    grid: Vec<f64>,
}

impl Rotary {
    /// Computes the frequencies for heads of `head_dim` dimensions, a multiple of 8.
    pub fn new(head_dim: usize) -> Rotary {
        let frequencies = |base: f64, pairs: usize| {
            (0..pairs)
                .map(|i| base.powf(-(i as f64) / pairs as f64))
                .collect()
        };
        Rotary {
            head_dim,
            time: frequencies(TIME_BASE, head_dim / 4),
            grid: frequencies(GRID_BASE, head_dim / 8),
        }
    }

    /// Writes one position's cosines, then its sines, to `out`, `[head_dim]`.
    pub fn table_into(&self, position: Position, origin_ns: i64, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.head_dim / 2);
        let time = position.time_ns.saturating_sub(origin_ns) as f64 / TIME_UNIT_NS;
        let sections = [
            (time, &self.time),
            (f64::from(position.row), &self.grid),
            (f64::from(position.col), &self.grid),
        ];
        let angles = sections
            .into_iter()
            .flat_map(|(x, frequencies)| frequencies.iter().map(move |f| x * f));
        for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(angles) {
            *cos = angle.cos() as f32;
            *sin = angle.sin() as f32;
        }
    }
}
