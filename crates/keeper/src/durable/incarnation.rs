//! Which life of this host's keeper this is.
//!
//! The note of the last one is in the run directory, so it is forgotten when the host starts anew. Then the clock alone tells the lives apart, as
//! the first of them ended with everything else on this host.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ninefold_model::Incarnation;

use crate::durable::small_file;

/// In the run directory: the present incarnation, in decimal digits.
const NOTE: &str = "incarnation";
/// Longest note, bytes.
const MAX_NOTE: u64 = 32;

/// A life begins. Nobody else may keep this VM on this host: the lock of the run directory is held.
///
/// # Errors
/// It cannot be noted.
pub fn begin(run_dir: &Path) -> io::Result<Incarnation> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0));
    begin_at(run_dir, now)
}

fn begin_at(run_dir: &Path, unix_us: u64) -> io::Result<Incarnation> {
    let path = run_dir.join(NOTE);
    let last = match small_file::read(&path, MAX_NOTE) {
        Ok(note) => String::from_utf8_lossy(&note).trim().parse().unwrap_or_else(|_| {
            tracing::warn!(path = %path.display(), "this is no note of a keeper's life; a new one is made");
            0
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let this = Incarnation(unix_us.max(1)).max(Incarnation(last).next());
    // Whoever reads it finds the one or the other.
    let staged = run_dir.join(format!(".{NOTE}"));
    fs::write(&staged, this.to_string())?;
    fs::rename(&staged, &path)?;
    Ok(this)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_life_is_later_than_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |unix_us| begin_at(dir.path(), unix_us).unwrap();
        assert_eq!(begin(1_000), Incarnation(1_000));
        assert_eq!(begin(2_000), Incarnation(2_000));
        assert_eq!(begin(500), Incarnation(2_001), "the clock was set back");
        assert_eq!(begin(500), Incarnation(2_002));
        fs::write(dir.path().join(NOTE), "nonsense").unwrap();
        assert_eq!(begin(3_000), Incarnation(3_000));
        fs::write(dir.path().join(NOTE), [b'1'; 100]).unwrap();
        assert!(begin_at(dir.path(), 4_000).is_err(), "longer than any note");
        assert!(begin_at(Path::new("/nowhere"), 1).is_err());
    }
}
