//! Text that quotes outside input and must not become as long.

use std::fmt::{Arguments, Error, Result, Write};

/// Writes as much of a text as `room` bytes hold.
pub(crate) fn write_cut(to: &mut impl Write, room: usize, what: Arguments<'_>) {
    struct Cut<'a, W> {
        to: &'a mut W,
        room: usize,
    }
    impl<W: Write> Write for Cut<'_, W> {
        fn write_str(&mut self, text: &str) -> Result {
            let fits = text.floor_char_boundary(self.room);
            self.room -= fits;
            self.to.write_str(&text[..fits])?;
            if fits < text.len() {
                Err(Error)
            } else {
                Ok(())
            }
        }
    }
    // An error means that the room is used up.
    let _ = Cut { to, room }.write_fmt(what);
}
