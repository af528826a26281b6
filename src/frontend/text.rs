//! Text: one token per byte, up to a limit.

/// Longest text in tokens; the rest of a message is cut off.
pub const MAX_TEXT_TOKENS: usize = 128;

/// Returns the bytes that become tokens, cut at the limit on a UTF-8 boundary.
pub fn tokens(text: &[u8]) -> &[u8] {
    let Some(head) = text.get(..MAX_TEXT_TOKENS) else {
        return text;
    };
    // A continuation byte at the cut belongs to a character that does not fit.
    let mut end = head.len();
    while end > 0 && text.get(end).is_some_and(|b| b & 0xc0 == 0x80) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(tokens(b"hello"), b"hello");
        let text = "ä".repeat(100);
        for skip in 0..2 {
            let cut = tokens(&text.as_bytes()[skip * 2..]);
            assert_eq!(cut.len(), MAX_TEXT_TOKENS);
            assert!(std::str::from_utf8(cut).is_ok());
        }
        let odd = format!("a{text}");
        assert_eq!(tokens(odd.as_bytes()).len(), MAX_TEXT_TOKENS - 1);
    }
}
