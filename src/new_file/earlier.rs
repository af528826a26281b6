//! Where a file goes whose name is taken by a new one: `live.mcap` becomes `live.1.mcap`, the next one `live.2.mcap`.

use std::fs::hard_link;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Most earlier files of one name. After that the name is not taken: a run that restarts all the time must not fill the
/// folder.
const MOST_EARLIER: u32 = 999;

/// Returns the name under which the file at `path` will be kept, or `None` if there is nothing to keep.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if all names are taken.
pub fn name_for(path: &Path) -> Result<Option<PathBuf>> {
    let path = super::followed(path);
    let holds_something = |facts: std::fs::Metadata| facts.is_file() && facts.len() > 0;
    if !path.metadata().is_ok_and(holds_something) {
        return Ok(None);
    }
    let mut names = (1..=MOST_EARLIER).map(|number| numbered(&path, number));
    let free = names.find(|name| name.symlink_metadata().is_err());
    free.map(Some).ok_or_else(|| {
        let reason = format!(
            "{} and {MOST_EARLIER} files of earlier runs are there: move them away",
            path.display()
        );
        Error::new(ErrorKind::AlreadyExists, reason)
    })
}

/// Gives the file at `path`, with links followed, a name of its own as well, and returns it; `None` if there is nothing to
/// keep.
///
/// # Errors
/// Those of the file system; [`ErrorKind::AlreadyExists`] if all names are taken.
pub(super) fn keep(path: &Path) -> Result<Option<PathBuf>> {
    while let Some(name) = name_for(path)? {
        // A link never replaces what has its name, and no moment passes in which the file has none.
        match hard_link(path, &name) {
            Ok(()) => return Ok(Some(name)),
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            // Taken meanwhile.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // A file system without links.
            Err(_) => return std::fs::rename(path, &name).map(|()| Some(name)),
        }
    }
    Ok(None)
}

/// Puts a number before the extension.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::super::create;
    use super::*;
    use std::io::Write;

    #[test]
    fn every_earlier_file_is_kept() {
        let name = format!("umm-earlier-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        for (file, kept) in [
            ("live.mcap", "live.1.mcap"),
            ("log", "log.1"),
            (".a", ".a.1"),
        ] {
            let path = dir.join(file);
            let write = |text: &str| {
                let (mut file, mut name) = create(&path).unwrap();
                name.keep_earlier();
                file.write_all(text.as_bytes()).unwrap();
                name.take().unwrap()
            };
            assert_eq!(name_for(&path).unwrap(), None);
            assert_eq!(write(""), None);
            assert_eq!(
                (name_for(&path).unwrap(), write("first")),
                (None, None),
                "an empty one is not kept"
            );
            assert_eq!(name_for(&path).unwrap(), Some(dir.join(kept)));
            assert_eq!(write("second"), Some(dir.join(kept)));
            let next = write("third").unwrap();
            assert_eq!(next, numbered(&path, 2));
            let texts = [path, next, dir.join(kept)].map(|p| std::fs::read_to_string(p).unwrap());
            assert_eq!(texts, ["third", "second", "first"]);
        }
        let full = dir.join("full.mcap");
        for number in 1..=MOST_EARLIER {
            std::fs::write(numbered(&full, number), "").unwrap();
        }
        std::fs::write(&full, "kept").unwrap();
        assert!(name_for(&full).is_err());
        let (_, mut name) = create(&full).unwrap();
        name.keep_earlier();
        let error = name.take().unwrap_err().to_string();
        assert!(
            error.contains("move them away") && error.contains("stays at"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&full).unwrap(), "kept");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
