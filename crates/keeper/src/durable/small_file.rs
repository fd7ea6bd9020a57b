//! Small files that somebody else may have written: read up to a bound, and only if they are files.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// All of a regular file of at most `most` bytes. A pipe under its name is not waited for.
///
/// # Errors
/// `InvalidData`: it is longer, or no file; those of the file system.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(bad("it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(bad(format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, mkfifoat};

    use super::*;

    #[test]
    fn only_small_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read(&path, 3).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"abc");
        assert_eq!(read(&path, 2).unwrap_err().to_string(), "it is longer than 2 bytes");
        // A file without an end costs no memory.
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&path, 1 << 20).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let pipe = dir.path().join("pipe");
        mkfifoat(CWD, &pipe, 0o600.into()).unwrap();
        for path in [&pipe, dir.path(), Path::new("/dev/zero")] {
            assert_eq!(read(path, 9).unwrap_err().to_string(), "it is not a regular file", "{path:?}");
        }
    }
}
