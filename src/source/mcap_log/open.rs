//! Segments of a log that are read side by side, in the order of their next messages.

use super::unpack::Unpacked;

/// An open segment. The greatest in the heap has the next message.
pub(super) struct Open {
    /// Log time of its next message.
    pub time_ns: u64,
    /// Where it lies in the file.
    pub offset: u64,
    pub segment: usize,
    pub next: usize,
    pub unpacked: Unpacked,
}

impl Open {
    /// Goes on to the next message, if there is one.
    pub fn advance(&mut self) -> bool {
        self.next += 1;
        let time_ns = self.unpacked.log_time_ns(self.next);
        self.time_ns = time_ns.unwrap_or(u64::MAX);
        time_ns.is_some()
    }
}

impl Ord for Open {
    fn cmp(&self, other: &Open) -> std::cmp::Ordering {
        // Reversed, since the heap yields its greatest: earliest first, then in file order.
        (other.time_ns, other.offset).cmp(&(self.time_ns, self.offset))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Open) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Open {
    fn eq(&self, other: &Open) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Open {}
