//! Operations on single tiles, for kernels in which vectors work between them.
//!
//! A tile keeps its contents from one operation to the next: the compiler keeps nothing in tiles, as no Rust type lives
//! there. Rust's rules for assembly have no way to say so; nothing called in between may use tiles. A tile is named by
//! its register, as in the instruction.

/// Zeroes a tile.
macro_rules! zero {
    ($tile:literal) => {
        std::arch::asm!(
            concat!("tilezero ", $tile),
            options(nomem, nostack, preserves_flags)
        )
    };
}

/// Loads sixteen rows of 64 bytes from `$from` on, `$stride` bytes apart.
macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        std::arch::asm!(
            concat!("tileloadd ", $tile, ", [{from} + {stride}*1]"),
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(readonly, nostack, preserves_flags),
        )
    };
}

/// Stores sixteen rows of 64 bytes to `$to`, one after the other.
macro_rules! store {
    ($to:expr, $tile:literal) => {
        std::arch::asm!(
            concat!("tilestored [{to} + {line}*1], ", $tile),
            to = in(reg) $to,
            line = in(reg) $crate::backend::cpu::geometry::CACHE_LINE,
            options(nostack, preserves_flags),
        )
    };
}

/// Stores sixteen rows of 64 bytes to `$to`, `$stride` bytes apart.
macro_rules! store_rows {
    ($to:expr, $stride:expr, $tile:literal) => {
        std::arch::asm!(
            concat!("tilestored [{to} + {stride}*1], ", $tile),
            to = in(reg) $to,
            stride = in(reg) $stride,
            options(nostack, preserves_flags),
        )
    };
}

/// Multiplies the rows in `$rows` and the panel in `$panel` by the instruction `$by`, and adds the
/// products to the sums in `$sums`.
macro_rules! multiply {
    ($by:literal, $sums:literal, $rows:literal, $panel:literal) => {
        std::arch::asm!(
            concat!($by, " ", $sums, ", ", $rows, ", ", $panel),
            options(nomem, nostack, preserves_flags),
        )
    };
}

/// Multiplies likewise, in 8 bits.
macro_rules! add_products_of_bytes {
    ($sums:literal, $rows:literal, $panel:literal) => {
        $crate::backend::cpu::amx::single::multiply!("tdpbssd", $sums, $rows, $panel)
    };
}

/// Multiplies likewise, in bf16.
macro_rules! add_products {
    ($sums:literal, $rows:literal, $panel:literal) => {
        $crate::backend::cpu::amx::single::multiply!("tdpbf16ps", $sums, $rows, $panel)
    };
}

pub(in crate::backend::cpu) use {
    add_products, add_products_of_bytes, load, multiply, store, store_rows, zero,
};
