//! The order of channels in rows and columns that are multiplied with each other.

use super::Bf16;
use crate::backend::cpu::isa::Isa;

/// Channels that change places among themselves.
const GROUP: usize = 4;

/// Place of each channel of a group in [`Order::Halves`].
const PLACES: [usize; GROUP] = [1, 3, 0, 2];

/// An order of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::cpu) enum Order {
    /// As they are numbered: a pair is an even channel and the odd one after it.
    Natural,
    /// In every four channels, first the pair of even ones, then that of odd ones, each with its second channel before
    /// its first, as [`super::pairs`] needs them.
    Halves,
}

impl Order {
    /// Returns the order of rows on this instruction set, and of columns wherever theirs can be chosen.
    pub(in crate::backend::cpu) fn of(isa: Isa) -> Order {
        match isa {
            Isa::Avx512Bf16 => Order::Halves,
            _ => Order::Natural,
        }
    }

    /// Returns the place of a channel.
    pub(super) fn place(self, channel: usize) -> usize {
        match self {
            Order::Natural => channel,
            Order::Halves => channel / GROUP * GROUP + PLACES[channel % GROUP],
        }
    }

    /// Brings channels of whole groups to their places.
    #[inline(always)]
    pub(in crate::backend::cpu) fn arrange(self, row: &mut [Bf16]) {
        if self == Order::Halves {
            for group in row.as_chunks_mut::<GROUP>().0 {
                let [a, b, c, d] = *group;
                *group = [c, a, d, b];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_where_they_are_said_to_be() {
        for order in [Order::Natural, Order::Halves] {
            let mut row: Vec<Bf16> = (0..64).map(Bf16).collect();
            order.arrange(&mut row);
            for channel in 0..64 {
                assert_eq!(row[order.place(channel)], Bf16(channel as u16), "{order:?}");
            }
        }
    }
}
