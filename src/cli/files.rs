//! Which files a command reads and writes: none may be two of them.

use super::Failure;
use std::path::Path;

/// A file and what the command line calls it.
pub type Named<'a> = (&'a str, Option<&'a Path>);

/// Refuses a file that is to be written and is read as well, or written twice.
pub fn check(read: &[Named<'_>], written: &[Named<'_>]) -> Result<(), Failure> {
    for (i, (name, file)) in written.iter().enumerate() {
        for (other_name, other) in written[i + 1..].iter().chain(read) {
            if let (Some(file), Some(other)) = (file, other)
                && same_file(file, other)
            {
                let file = file.display();
                return Err(format!("{name} and {other_name} are the same file, {file}").into());
            }
        }
    }
    Ok(())
}

/// Whether two paths lead to one file, by whatever links; of files that are still to be made, to one name in one folder.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
        use std::os::unix::fs::MetadataExt;
        return a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    let place = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    matches!((place(a), place(b)), (Some(a), Some(b)) if a == b)
}
