//! Where the programs of Ninefold are.

use std::path::{Path, PathBuf};

use crate::error::LabError;

/// The program `ninefold-keeper`.
pub const KEEPER: &str = "ninefold-keeper";
/// The program `ninefold-memory`, which a backup's keeper starts.
pub const MEMORY: &str = "ninefold-memory";
/// The program `ninefold-witness`.
pub const WITNESS_PROGRAM: &str = "ninefold-witness";
/// What every QEMU's name begins with.
pub const QEMU: &str = "qemu-system";

/// Finds a program: in `bin_dir`, in NINEFOLD_BIN_DIR, beside the running program or one or two directories above it
/// (Cargo puts tests into `target/debug/deps`), on the PATH.
pub(crate) fn find(program: &str, bin_dir: Option<&Path>) -> Result<PathBuf, LabError> {
    let given = bin_dir.map(Path::to_owned).or_else(|| std::env::var_os("NINEFOLD_BIN_DIR").map(PathBuf::from));
    let mut places: Vec<PathBuf> = given.into_iter().collect();
    if places.is_empty() {
        if let Ok(exe) = std::env::current_exe() {
            places.extend(exe.ancestors().skip(1).take(2).map(Path::to_owned));
        }
        places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    }
    places
        .into_iter()
        .map(|place| place.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| LabError::Program(program.to_owned()))
}
