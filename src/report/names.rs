//! Names and texts of a log, each stored once and bounded: a report must not grow with what a log claims.

use std::collections::HashMap;

/// Most columns of one kind (events, topics, stages, ...) that are drawn.
pub(super) const MAX_NAMES: usize = 64;
/// Most different texts (plans, reasons, ...) kept.
const MAX_TEXTS: usize = 8_000;
/// Most bytes kept of one text; an ellipsis replaces the rest.
pub(super) const MAX_TEXT_BYTES: usize = 600;

/// Cuts a text of more than [`MAX_TEXT_BYTES`] there, between characters, and adds an ellipsis.
pub(super) fn clip(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let mut clipped = text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned();
    clipped.push('…');
    clipped
}

/// Column names in order of appearance.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    names: Vec<String>,
    /// Whether some names found no place.
    pub overflowed: bool,
}

impl Names {
    /// Returns the column of `name`, a new one if needed; `None` when all [`MAX_NAMES`] are taken or the name is longer
    /// than [`MAX_TEXT_BYTES`]. `hint` is where it probably is.
    pub fn index(&mut self, name: &str, hint: usize) -> Option<usize> {
        if self.names.get(hint).is_some_and(|known| known == name) {
            return Some(hint);
        }
        if let Some(index) = self.names.iter().position(|known| known == name) {
            return Some(index);
        }
        if self.names.len() >= MAX_NAMES || name.len() > MAX_TEXT_BYTES {
            self.overflowed = true;
            return None;
        }
        self.names.push(name.to_owned());
        Some(self.names.len() - 1)
    }

    /// Returns all names.
    pub fn as_slice(&self) -> &[String] {
        &self.names
    }
}

/// Identifies a text of [`Texts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TextId(u32);

impl TextId {
    /// The empty text.
    pub const NONE: TextId = TextId(0);

    /// Returns this text, or `other` where this one is empty.
    pub fn or(self, other: TextId) -> TextId {
        if self == TextId::NONE { other } else { self }
    }

    /// Returns the position in [`Texts::as_slice`].
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Texts, each stored once.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    texts: Vec<String>,
    ids: HashMap<String, u32>,
    /// Whether some texts found no place.
    pub overflowed: bool,
}

impl Default for Texts {
    fn default() -> Self {
        Texts {
            texts: vec![String::new()],
            ids: HashMap::from([(String::new(), 0)]),
            overflowed: false,
        }
    }
}

impl Texts {
    /// Returns the id of `text` (clipped); [`TextId::NONE`] when the table is full.
    pub fn id(&mut self, text: &str) -> TextId {
        if let Some(id) = self.ids.get(text) {
            return TextId(*id);
        }
        let text = clip(text);
        if let Some(id) = self.ids.get(&text) {
            return TextId(*id);
        }
        if self.texts.len() >= MAX_TEXTS {
            self.overflowed = true;
            return TextId::NONE;
        }
        let id = self.texts.len() as u32;
        self.texts.push(text.clone());
        self.ids.insert(text, id);
        TextId(id)
    }

    /// Returns all texts, the empty one first.
    pub fn as_slice(&self) -> &[String] {
        &self.texts
    }
}
