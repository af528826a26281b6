//! Errors of libraries that keep their cause to themselves.

use std::error::Error;
use std::fmt::{Display, Formatter, Result};

/// Shows an error followed by its causes, except those that the text before names already.
pub(crate) struct WithCauses<'a>(pub &'a dyn Error);

impl Display for WithCauses<'_> {
    fn fmt(&self, to: &mut Formatter<'_>) -> Result {
        let mut said = self.0.to_string();
        to.write_str(&said)?;
        let mut error = self.0;
        while let Some(cause) = error.source() {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(to, ": {text}")?;
                said = text;
            }
            error = cause;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("I/O error")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("writing: {0}")]
    struct Whole(#[source] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(
            WithCauses(&Outer(full())).to_string(),
            "I/O error: no storage space"
        );
        assert_eq!(
            WithCauses(&Whole(full())).to_string(),
            "writing: no storage space"
        );
    }
}
