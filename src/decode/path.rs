//! Field paths: `linear.x`, `values[2].value`, `accel.0`.

use super::BindError;

/// Longest path, in steps.
pub(super) const MAX_STEPS: usize = 16;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An object's member; if its name is a number, also an array's element.
    Field(String, Option<usize>),
    /// An array's element.
    Index(usize),
}

/// The place of a signal's value in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalPath {
    text: String,
    steps: Vec<Step>,
}

impl SignalPath {
    /// Parses a path.
    ///
    /// # Errors
    /// [`BindError::BadPath`].
    pub fn parse(text: &str) -> Result<SignalPath, BindError> {
        let bad = |reason| BindError::BadPath {
            path: text.to_owned(),
            reason,
        };
        let mut steps = Vec::new();
        for part in text.split('.') {
            let mut pieces = part.split('[');
            let field = pieces.next().unwrap_or("");
            if field.is_empty() {
                return Err(bad("a name is empty"));
            }
            steps.push(Step::Field(field.to_owned(), field.parse().ok()));
            for piece in pieces {
                let index = piece.strip_suffix(']').and_then(|i| i.parse().ok());
                steps.push(Step::Index(
                    index.ok_or_else(|| bad("an index must be a number in brackets"))?,
                ));
            }
        }
        if steps.len() > MAX_STEPS {
            return Err(bad("it has more than 16 steps"));
        }
        Ok(SignalPath {
            text: text.to_owned(),
            steps,
        })
    }

    /// Returns the path as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }
}
