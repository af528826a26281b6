//! Output files that take their name when there is something to keep: an earlier file of that name stays until then,
//! and stays whole for anyone who reads or maps it. Where it cannot be made again, it then gets a name of its own.

mod earlier;

pub use earlier::name_for as name_for_earlier;

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Most processes that may write files of one name at once.
const MOST_WRITERS: u32 = 64;

/// Most links followed from a name to a file.
const MOST_LINKS: u32 = 40;

/// Most bytes of a name repeated in the file's temporary one: names have a limit.
const MOST_NAME_BYTES: usize = 100;

/// Files of this process that do not have their name yet.
static UNNAMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The name a new file will take. If it is dropped before that, the file is removed.
#[derive(Debug)]
pub(crate) struct PendingName {
    /// The name, with links followed.
    path: PathBuf,
    /// Where the file lies meanwhile; none if it lies at `path`.
    beside: Option<PathBuf>,
    taken: bool,
    /// Whether an earlier file of this name is kept under another.
    keeps_earlier: bool,
}

/// Creates a file in the same folder that will be called `path`, with the permissions of the one it replaces. Where
/// that is impossible, the existing file is opened and emptied: a device or pipe, a mounted file, one in a folder that
/// takes no new files.
///
/// # Errors
/// Those of the file system, also for an existing file that may not be written.
pub(crate) fn create(path: &Path) -> Result<(File, PendingName)> {
    match create_beside(path) {
        Err(error) if refuses_new_files(&error) && path.exists() => {
            let path = followed(path);
            Ok((File::create(&path)?, pending(path, None)))
        }
        created => created,
    }
}

/// Like [`create`], but fails where it would empty the existing file.
///
/// # Errors
/// As [`create`].
pub(crate) fn create_beside(path: &Path) -> Result<(File, PendingName)> {
    let path = followed(path);
    let before = std::fs::metadata(&path).ok();
    if let Some(before) = &before {
        // It is not opened to find out: a pipe's reader would take the closing for the end.
        if !before.is_file() || is_mounted(&path, before) {
            return Err(ErrorKind::Unsupported.into());
        }
        // Whoever may not write it may not replace it.
        OpenOptions::new().write(true).open(&path)?;
    }
    let (file, beside) = first_free(&path)?;
    if let Some(facts) = before {
        // If that is refused, the file has the permissions of any new one.
        let _ = file.set_permissions(facts.permissions());
    }
    unnamed(|files| files.push(beside.clone()));
    Ok((file, pending(path, Some(beside))))
}

fn pending(path: PathBuf, beside: Option<PathBuf>) -> PendingName {
    PendingName {
        path,
        beside,
        taken: false,
        keeps_earlier: false,
    }
}

fn refuses_new_files(error: &Error) -> bool {
    use ErrorKind::{PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(
        error.kind(),
        PermissionDenied | ReadOnlyFilesystem | Unsupported
    )
}

/// Returns where a path leads, whether anything is there or not.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = path.read_link() else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Returns whether a file is on another file system than its folder: no file of the folder can replace it.
fn is_mounted(path: &Path, facts: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let of_folder = std::fs::metadata(folder(path));
        of_folder.is_ok_and(|folder| folder.dev() != facts.dev())
    }
    #[cfg(not(unix))]
    {
        let _ = (path, facts);
        false
    }
}

fn folder(path: &Path) -> &Path {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Opens the first file beside `path` that no process is writing, and empties it. Files left by killed
/// processes are reused.
fn first_free(path: &Path) -> Result<(File, PathBuf)> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the path names no file"))?;
    for number in 0..MOST_WRITERS {
        let beside = path.with_file_name(name_beside(name, number));
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&beside)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => continue,
            // On a file system without locks, a single writer is assumed.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // After it was opened here, a process that has since ended may have renamed it.
        if !same_file(&beside, &file) {
            continue;
        }
        file.set_len(0)?;
        return Ok((file, beside));
    }
    Err(Error::new(
        ErrorKind::ResourceBusy,
        format!("{MOST_WRITERS} processes are already writing it"),
    ))
}

fn name_beside(name: &OsStr, number: u32) -> OsString {
    let mut beside = OsString::from(".");
    match name.to_string_lossy() {
        short if short.len() <= MOST_NAME_BYTES => beside.push(name),
        long => beside.push(&long[..long.floor_char_boundary(MOST_NAME_BYTES)]),
    }
    if number > 0 {
        beside.push(format!(".{number}"));
    }
    beside.push(".new");
    beside
}

fn same_file(path: &Path, file: &File) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |facts: std::fs::Metadata| (facts.dev(), facts.ino());
        let of_path = path.metadata().map(place).ok();
        of_path.is_some() && of_path == file.metadata().map(place).ok()
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// Returns whether two paths lead to one file, through whatever links; if not yet created, to one name in one folder.
pub fn lead_to_one_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
        use std::os::unix::fs::MetadataExt;
        return a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    let place = |path: &Path| {
        let path = followed(path);
        Some(folder(&path).canonicalize().ok()?.join(path.file_name()?))
    };
    matches!((place(a), place(b)), (Some(a), Some(b)) if a == b)
}

/// Removes the files that do not have their name yet, for a process that ends while other threads still hold them.
pub fn remove_unnamed() {
    unnamed(|files| {
        for file in files.drain(..) {
            let _ = std::fs::remove_file(file);
        }
    });
}

fn unnamed<T>(work: impl FnOnce(&mut Vec<PathBuf>) -> T) -> T {
    let mut files = match UNNAMED.lock() {
        Ok(files) => files,
        Err(poisoned) => poisoned.into_inner(),
    };
    work(&mut files)
}

impl PendingName {
    /// Keeps an earlier file of this name under another one when the name is taken, see [`name_for_earlier`]. A file
    /// written in place has no earlier one.
    pub fn keep_earlier(&mut self) {
        self.keeps_earlier = true;
    }

    /// Returns where the file lies.
    pub fn place(&self) -> &Path {
        self.beside.as_deref().unwrap_or(&self.path)
    }

    /// Forces the file's bytes to disk before it takes its name. A file written in place is left to the system.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self, file: &File) -> Result<()> {
        match self.beside {
            Some(_) => file.sync_all(),
            None => Ok(()),
        }
    }

    /// Returns whether [`PendingName::take`] has been called.
    pub fn is_taken(&self) -> bool {
        self.taken
    }

    /// Gives the file its name and returns where an earlier one is kept, if it is; otherwise that is replaced. A second
    /// call does nothing.
    ///
    /// # Errors
    /// Those of the file system, saying where the file lies: it stays there.
    pub fn take(&mut self) -> Result<Option<PathBuf>> {
        self.taken = true;
        let Some(beside) = self.beside.take() else {
            return Ok(None);
        };
        unnamed(|files| files.retain(|file| *file != beside));
        let kept = match self.keeps_earlier {
            true => earlier::keep(&self.path),
            false => Ok(None),
        };
        let named = kept.and_then(|kept| std::fs::rename(&beside, &self.path).map(|()| kept));
        named.map_err(|error| {
            let reason = format!(
                "{error}; the file stays at {} until a run writes one of this name again",
                beside.display()
            );
            Error::new(error.kind(), reason)
        })
    }
}

impl Drop for PendingName {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            unnamed(|files| files.retain(|file| file != beside));
            let _ = std::fs::remove_file(beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn dir(name: &str) -> PathBuf {
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
        let dir = dir("stays");
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
        assert!(!name.is_taken());
        name.take().unwrap();
        assert!(name.is_taken());
        name.take().unwrap();
        drop(name);
        // Whoever has the file open goes on reading it.
        assert_eq!(std::io::read_to_string(&mut read).unwrap(), "before");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&dir), ["out.mcap"]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_used_again_and_two_writers_do_not_meet() {
        let dir = dir("left");
        let path = dir.join("out.mcap");
        std::fs::write(dir.join(".out.mcap.new"), "left behind").unwrap();
        let (mut first, mut name) = create(&path).unwrap();
        let (mut second, mut other) = create(&path).unwrap();
        assert_eq!(names(&dir), [".out.mcap.1.new", ".out.mcap.new"]);
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        other.take().unwrap();
        name.take().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(names(&dir), ["out.mcap"]);
        let long = "x".repeat(250);
        let (_, mut name) = create(&dir.join(&long)).unwrap();
        name.take().unwrap();
        assert!(dir.join(long).exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// The reader sees all that is written, and a single end.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_is_opened_once() {
        let dir = dir("pipe");
        let pipe = dir.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap())
        };
        let (mut file, mut name) = create(&pipe).unwrap();
        name.take().unwrap();
        file.write_all(b"all of it").unwrap();
        drop((file, name));
        assert_eq!(reader.join().unwrap(), "all of it");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_and_permissions_stay_and_devices_are_not_replaced() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let dir = dir("links");
        let (target, link, first) = (dir.join("target"), dir.join("link"), dir.join("first"));
        symlink("target", &link).unwrap();
        symlink(&link, &first).unwrap();
        // Whether anything is at the link's end or not.
        for text in ["one", "two"] {
            assert!(lead_to_one_file(&first, &target));
            let (mut file, mut name) = create(&first).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            name.take().unwrap();
            assert!(link.is_symlink() && first.is_symlink());
            assert_eq!(std::fs::read_to_string(&target).unwrap(), text);
            std::fs::set_permissions(&target, PermissionsExt::from_mode(0o640)).unwrap();
        }
        let (_, mut name) = create(&link).unwrap();
        name.take().unwrap();
        let mode = target.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let (_, mut name) = create(Path::new("/dev/null")).unwrap();
        name.take().unwrap();
        assert!(create_beside(Path::new("/dev/null")).is_err());
        let kind = Path::new("/dev/null").metadata().unwrap().file_type();
        assert!(kind.is_char_device());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
