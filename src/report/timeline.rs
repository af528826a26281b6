//! The rows of the timeline and the axis they lie on, in bounded memory however long the log is.
//!
//! Contract: when the rows are full, neighbours are merged in pairs and a row covers twice as many ticks (see [`Row`]
//! for what survives). The axis is run time and never goes back: where the log's time jumps (a new epoch, a long pause)
//! a new [`Segment`] begins right after the last one, so that a looped log or a night's pause stays readable.

use super::names::Names;
use super::row::{Near, Row};

/// Most rows kept before neighbours are merged: ten minutes at 10 Hz in full detail.
pub(super) const MAX_ROWS: usize = 6_000;
/// Most segments; later jumps of the log's time are drawn without a mark.
const MAX_SEGMENTS: usize = 2_000;
/// A pause longer than this, and than [`MAX_GAP_PERIODS`], is cut out of the axis.
const MAX_GAP_NS: u64 = 10_000_000_000;
const MAX_GAP_PERIODS: u64 = 20;
/// Width left on the axis for a pause that is cut out.
const GAP_WIDTH_NS: u64 = 1_000_000_000;
/// Longest period of any run; a longer one is a mistake.
const MAX_PERIOD_NS: u64 = 3_600_000_000_000;
/// Period assumed until two ticks are known.
const DEFAULT_PERIOD_NS: u64 = 100_000_000;
/// Last rows among which a tick's row is looked for: its messages lie side by side in the log.
const LOOK_BACK_ROWS: usize = 8;
/// How long before or after its segment's ticks something may be stamped and still belong to it.
const PLACE_SLACK_NS: u64 = 2_000_000_000;

/// Why a [`Segment`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// The log's first tick.
    Start,
    /// The time jumped back.
    Back,
    /// A long pause.
    Gap,
}

/// A stretch of the log in which tick times rise without a long pause.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub why: Break,
    pub first_row: usize,
    /// Tick time of the first and of the last tick.
    pub first_time_ns: u64,
    pub last_time_ns: u64,
    /// Place of the first tick on the axis.
    pub x_ns: u64,
}

/// All rows, the axis they lie on, and the names of their columns.
pub(super) struct Timeline {
    pub rows: Vec<Row>,
    pub segments: Vec<Segment>,
    /// Ticks a full row covers: 1, 2, 4, ...
    pub ticks_per_row: u64,
    pub events: Names,
    pub scenes: Names,
    pub motion: Names,
    pub modalities: Names,
    pub topics: Names,
    pub stages: Names,
    /// Nanoseconds between two ticks.
    pub period_ns: u64,
    period_known: bool,
    max_rows: usize,
}

impl Timeline {
    /// Creates an empty timeline that keeps at most `max_rows` rows, or [`MAX_SEGMENTS`] where that is more.
    pub fn new(max_rows: usize) -> Timeline {
        Timeline {
            rows: Vec::new(),
            segments: Vec::new(),
            ticks_per_row: 1,
            events: Names::default(),
            scenes: Names::default(),
            motion: Names::default(),
            modalities: Names::default(),
            topics: Names::default(),
            stages: Names::default(),
            period_ns: DEFAULT_PERIOD_NS,
            period_known: false,
            max_rows: max_rows.max(MAX_SEGMENTS),
        }
    }

    /// Takes the period from the run's facts instead of from the first two ticks.
    pub fn set_period_ns(&mut self, period_ns: u64) {
        if (1..=MAX_PERIOD_NS).contains(&period_ns) {
            self.period_ns = period_ns;
            self.period_known = true;
        }
    }

    /// Adds what one message says about one tick.
    pub fn add(&mut self, mut part: Row) {
        if let Some(index) = self.find(&part) {
            if let Some(row) = self.rows.get_mut(index) {
                row.absorb(part);
            }
            return;
        }
        if self.rows.len() >= self.max_rows {
            self.halve();
        }
        (part.segment, part.x_ns) = self.place_tick(part.first_time_ns);
        part.ticks = 1;
        let ticks_per_row = self.ticks_per_row;
        match self.rows.last_mut() {
            Some(last) if last.segment == part.segment && last.ticks < ticks_per_row => {
                append(last, part)
            }
            _ => self.rows.push(part),
        }
    }

    /// Finds the row of the tick that `part` is about.
    fn find(&self, part: &Row) -> Option<usize> {
        let recent = self.rows.len().saturating_sub(LOOK_BACK_ROWS);
        let rows = self.rows.iter().enumerate().skip(recent).rev();
        let mut matching = rows.filter(|(_, row)| {
            (row.first_tick..=row.last_tick).contains(&part.first_tick)
                && (row.first_time_ns..=row.last_time_ns).contains(&part.first_time_ns)
                && (part.epoch == 0 || row.epoch == 0 || row.epoch == part.epoch)
        });
        matching.next().map(|(index, _)| index)
    }

    /// Returns segment and place on the axis of a tick that comes after all others.
    fn place_tick(&mut self, time_ns: u64) -> (usize, u64) {
        let (why, x_ns) = match (self.rows.last(), self.segments.last_mut()) {
            (Some(last), Some(segment)) => {
                let step_ns = time_ns.saturating_sub(last.last_time_ns);
                let max_gap_ns = MAX_GAP_NS.max(self.period_ns.saturating_mul(MAX_GAP_PERIODS));
                if time_ns <= last.last_time_ns {
                    (Break::Back, last.x_ns.saturating_add(self.period_ns))
                } else if step_ns > max_gap_ns {
                    (Break::Gap, last.x_ns.saturating_add(GAP_WIDTH_NS))
                } else {
                    let place = (last.segment, last.x_ns.saturating_add(step_ns));
                    segment.last_time_ns = time_ns;
                    if !self.period_known {
                        self.set_period_ns(step_ns);
                    }
                    return place;
                }
            }
            _ => (Break::Start, 0),
        };
        if self.segments.len() >= MAX_SEGMENTS {
            return (self.segments.len() - 1, x_ns);
        }
        self.segments.push(Segment {
            why,
            first_row: self.rows.len(),
            first_time_ns: time_ns,
            last_time_ns: time_ns,
            x_ns,
        });
        (self.segments.len() - 1, x_ns)
    }

    /// Merges neighbours of one segment in pairs.
    fn halve(&mut self) {
        self.ticks_per_row = self.ticks_per_row.saturating_mul(2);
        let mut merged: Vec<Row> = Vec::with_capacity(self.rows.len());
        let mut last_is_single = false;
        for row in self.rows.drain(..) {
            match merged.last_mut() {
                Some(last) if last_is_single && last.segment == row.segment => {
                    append(last, row);
                    last_is_single = false;
                }
                _ => {
                    merged.push(row);
                    last_is_single = true;
                }
            }
        }
        for (index, row) in merged.iter().enumerate().rev() {
            if let Some(segment) = self.segments.get_mut(row.segment) {
                segment.first_row = index;
            }
        }
        self.rows = merged;
    }

    /// Returns the run time covered, the first tick's period included.
    pub fn duration_ns(&self) -> u64 {
        let last = self.rows.last();
        last.map_or(0, |row| row.x_ns.saturating_add(self.period_ns))
    }

    /// Returns the segment being written: what stands between two ticks in the log belongs to it.
    pub fn open_segment(&self) -> usize {
        self.segments.len().saturating_sub(1)
    }

    /// Returns the place on the axis of something stamped `time_ns` that was read while `segment` was open; negative
    /// before the first tick. `None` where it fits neither that segment nor the next.
    pub fn place(&self, time_ns: u64, segment: usize) -> Option<i64> {
        let mut candidates = self.segments.iter().skip(segment).take(2);
        let home = candidates.find(|segment| {
            let from_ns = segment.first_time_ns.saturating_sub(PLACE_SLACK_NS);
            let to_ns = segment.last_time_ns.saturating_add(PLACE_SLACK_NS);
            (from_ns..=to_ns).contains(&time_ns)
        })?;
        let since_first = i128::from(time_ns) - i128::from(home.first_time_ns);
        i64::try_from(i128::from(home.x_ns) + since_first).ok()
    }

    /// Returns the newest row, at or before row `at_most`, that covers a moment's tick.
    pub fn locate(&self, moment: &Near, at_most: usize) -> Option<usize> {
        let Near {
            epoch,
            tick,
            time_ns,
            ..
        } = *moment;
        let newest = self.rows.get(at_most)?.segment;
        (0..=newest).rev().find_map(|index| {
            let from = self.segments.get(index)?.first_row;
            let next = self.segments.get(index + 1);
            let to = next
                .map_or(self.rows.len(), |s| s.first_row)
                .min(at_most + 1);
            let rows = self.rows.get(from..to)?;
            let near = rows.partition_point(|row| row.last_time_ns < time_ns);
            let row = rows.get(near)?;
            let same_epoch = epoch == 0 || row.epoch == 0 || row.epoch == epoch;
            let hit = same_epoch
                && row.first_time_ns <= time_ns
                && (row.first_tick..=row.last_tick).contains(&tick);
            hit.then_some(from + near)
        })
    }
}

/// Merges the row that comes next into `row`.
fn append(row: &mut Row, next: Row) {
    row.x_ns = next.x_ns;
    row.ticks = row.ticks.saturating_add(next.ticks);
    row.absorb(next);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn filled(times_ms: impl IntoIterator<Item = u64>) -> Timeline {
        let mut timeline = Timeline::new(MAX_ROWS);
        for (tick, time_ms) in times_ms.into_iter().enumerate() {
            timeline.add(Row::new(tick as u64, time_ms * MS, 0));
        }
        timeline
    }

    fn moment(epoch: u32, tick: u64, time_ms: u64) -> Near {
        Near {
            epoch,
            tick,
            time_ns: time_ms * MS,
            similarity: 1.0,
        }
    }

    #[test]
    fn messages_of_a_tick_share_a_row() {
        let mut timeline = filled([100, 200]);
        let mut part = Row::new(1, 200 * MS, 1);
        part.frames = 1;
        timeline.add(part);
        assert_eq!(timeline.rows.len(), 2);
        assert_eq!(timeline.rows[1].frames, 1);
        assert_eq!(timeline.rows[1].ticks, 1);
    }

    #[test]
    fn the_axis_never_goes_back_and_cuts_pauses_out() {
        let hour_ms = 3_600_000;
        let timeline = filled([1000, 1100, 1000, 1100, hour_ms, hour_ms + 100]);
        let x_ms: Vec<u64> = timeline.rows.iter().map(|r| r.x_ns / MS).collect();
        assert_eq!(x_ms, [0, 100, 200, 300, 1300, 1400]);
        let why: Vec<Break> = timeline.segments.iter().map(|s| s.why).collect();
        assert_eq!(why, [Break::Start, Break::Back, Break::Gap]);
    }

    #[test]
    fn stamps_are_placed_in_the_segment_they_were_read_in() {
        let timeline = filled([1000, 1100, 1000, 1100]);
        assert_eq!(timeline.place(1050 * MS, 0), Some(50 * MS as i64));
        assert_eq!(timeline.place(1050 * MS, 1), Some(250 * MS as i64));
        assert_eq!(timeline.place(950 * MS, 0), Some(-50 * MS as i64));
        assert_eq!(timeline.place(u64::MAX, 0), None);
    }

    #[test]
    fn earlier_ticks_are_found_in_the_newest_segment_that_has_them() {
        let mut timeline = Timeline::new(MAX_ROWS);
        for (tick, time_ms) in [(0, 1000), (1, 1100), (0, 1000), (1, 1100), (2, 1200)] {
            timeline.add(Row::new(tick, time_ms * MS, 0));
        }
        // Tick 0 at 1000 ms came twice within a few rows and without an epoch: that is the same tick.
        assert_eq!(timeline.rows.len(), 3);
        assert_eq!(timeline.locate(&moment(0, 1, 1100), 2), Some(1));
        assert_eq!(timeline.locate(&moment(0, 7, 1100), 2), None);

        let timeline = filled([1000, 1100, 1000, 1100]);
        assert_eq!(timeline.locate(&moment(0, 1, 1100), 3), Some(1));
        assert_eq!(timeline.locate(&moment(0, 3, 1100), 3), Some(3));
    }

    #[test]
    fn a_moment_is_found_in_its_own_lap() {
        let mut timeline = Timeline::new(MAX_ROWS);
        for epoch in 1..=3 {
            for tick in 1..=20 {
                timeline.add(Row::new(tick, tick * 100 * MS, epoch));
            }
        }
        for (epoch, row) in [(1, 6), (2, 26), (3, 46), (0, 46)] {
            let found = timeline.locate(&moment(epoch, 7, 700), 59);
            assert_eq!(found, Some(row), "epoch {epoch}");
        }
    }

    #[test]
    fn a_long_log_stays_bounded_and_loses_no_tick() {
        for ticks in [MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS, 5 * MAX_ROWS + 3] {
            let timeline = filled((1..=ticks as u64).map(|k| k * 100));
            assert!(timeline.rows.len() <= MAX_ROWS, "{}", timeline.rows.len());
            let counted: u64 = timeline.rows.iter().map(|r| r.ticks).sum();
            assert_eq!(counted, ticks as u64);
            for pair in timeline.rows.windows(2) {
                assert_eq!(pair[0].last_tick + 1, pair[1].first_tick);
                assert!(pair[0].x_ns < pair[1].x_ns);
            }
        }
    }

    #[test]
    fn hostile_times_break_nothing() {
        let timeline = filled([0, u64::MAX / MS, 0, 5, u64::MAX / MS, 1]);
        assert_eq!(timeline.rows.len(), 6);
        assert!(timeline.rows.windows(2).all(|w| w[0].x_ns < w[1].x_ns));
    }
}
