//! Output files that take their name when they have something in them: whatever had it stays until then, and stays whole for
//! whoever reads or maps it.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Files of one name that may be left behind by processes that were killed.
const MOST_LEFT_BEHIND: u32 = 100;

/// The name a new file will take. Dropped before, the file is removed.
#[derive(Debug)]
pub(crate) struct PendingName {
    /// Links resolved.
    path: PathBuf,
    /// Where it lies meanwhile; none once it has the name.
    beside: Option<PathBuf>,
}

/// Creates a file that will be called `path`, in the same folder, as readable as what it replaces. What is no file, a device or a pipe, is
/// opened itself, and so is a file in a folder that takes no new ones.
///
/// # Errors
/// As the file system gives them, with the cause.
pub(crate) fn create(path: &Path) -> Result<(File, PendingName)> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let before = std::fs::metadata(&path).ok();
    let itself = |path: PathBuf| Ok((File::create(&path)?, PendingName { path, beside: None }));
    if before.as_ref().is_some_and(|facts| !facts.is_file()) {
        return itself(path);
    }
    let (file, beside) = match create_beside(&path) {
        Ok(created) => created,
        Err(error) if error.kind() == ErrorKind::PermissionDenied && before.is_some() => {
            return itself(path);
        }
        Err(error) => return Err(error),
    };
    if let Some(facts) = before {
        // Where it may not, it has the permissions of any new file.
        let _ = file.set_permissions(facts.permissions());
    }
    let beside = Some(beside);
    Ok((file, PendingName { path, beside }))
}

fn create_beside(path: &Path) -> Result<(File, PathBuf)> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "names no file"))?;
    for attempt in 0..MOST_LEFT_BEHIND {
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}-{attempt}.new", std::process::id()));
        let beside = path.with_file_name(beside);
        let mut options = OpenOptions::new();
        match options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&beside)
        {
            Ok(file) => return Ok((file, beside)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

impl PendingName {
    /// Where the file lies.
    pub fn place(&self) -> &Path {
        self.beside.as_deref().unwrap_or(&self.path)
    }

    /// Gives the file its name, in the place of what had it; whether it had not got it before.
    ///
    /// # Errors
    /// As the file system gives them; it can be tried again.
    pub fn take(&mut self) -> Result<bool> {
        let Some(beside) = &self.beside else {
            return Ok(false);
        };
        std::fs::rename(beside, &self.path)?;
        self.beside = None;
        Ok(true)
    }
}

impl Drop for PendingName {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = std::fs::remove_file(beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("umm-new-file-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_there_stays_until_the_name_is_taken() {
        let dir = folder("stays");
        let path = dir.join("out.mcap");
        std::fs::write(&path, "before").unwrap();
        let (mut file, name) = create(&path).unwrap();
        file.write_all(b"given up").unwrap();
        drop(name);
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(names(&dir), ["out.mcap"]);

        let (mut file, mut name) = create(&path).unwrap();
        file.write_all(b"new").unwrap();
        let mut read = File::open(&path).unwrap();
        assert!(name.take().unwrap());
        assert!(!name.take().unwrap());
        drop(name);
        // Whoever has the file open goes on reading it.
        assert_eq!(std::io::read_to_string(&mut read).unwrap(), "before");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&dir), ["out.mcap"]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_and_permissions_stay_and_devices_are_not_replaced() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let dir = folder("links");
        let (target, link) = (dir.join("target"), dir.join("link"));
        std::fs::write(&target, "before").unwrap();
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o640)).unwrap();
        symlink(&target, &link).unwrap();
        let (mut file, mut name) = create(&link).unwrap();
        file.write_all(b"new").unwrap();
        assert!(name.take().unwrap());
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        let mode = target.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let (_, mut name) = create(Path::new("/dev/null")).unwrap();
        assert!(!name.take().unwrap());
        let kind = Path::new("/dev/null").metadata().unwrap().file_type();
        assert!(kind.is_char_device());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
