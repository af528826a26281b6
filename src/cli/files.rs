//! Checks that the files a command reads and writes are different ones.

use super::Failure;
use std::path::Path;
use umm::new_file::lead_to_one_file;

/// A file and what the command line calls it.
pub type Named<'a> = (&'a str, Option<&'a Path>);

/// Refuses a file that is to be written but is also read, or is written twice.
pub fn check(read: &[Named<'_>], written: &[Named<'_>]) -> Result<(), Failure> {
    for (i, (name, file)) in written.iter().enumerate() {
        for (other_name, other) in written[i + 1..].iter().chain(read) {
            if let (Some(file), Some(other)) = (file, other)
                && lead_to_one_file(file, other)
            {
                let file = file.display();
                return Err(format!("{name} and {other_name} are the same file, {file}").into());
            }
        }
    }
    Ok(())
}
