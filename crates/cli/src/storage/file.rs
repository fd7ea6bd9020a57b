//! Files outside the pool and their formats.

use std::path::{Path, PathBuf};

use clap::Args;
use ninefold_volume::pool::FileFormat;

use crate::error::CliError;

/// A file to import or export.
#[derive(Debug, Args)]
pub struct OuterFile {
    /// The file outside the pool
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Its format: raw, qcow2, vmdk, vdi or vhdx; without it what the file's name ends with says (never its content,
    /// which a guest may have written)
    #[arg(long, value_name = "FORMAT")]
    file_format: Option<FileFormat>,
}

impl OuterFile {
    /// The format that was given, or that the name tells.
    pub fn format(&self) -> Result<FileFormat, CliError> {
        let told = self.file_format.or_else(|| by_name(&self.path));
        told.ok_or_else(|| CliError::FileFormat { path: self.path.clone() })
    }
}

/// `.img` is no answer: raw images and qcow2 ones are called so.
fn by_name(path: &Path) -> Option<FileFormat> {
    path.extension()?.to_str()?.to_ascii_lowercase().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_a_format() {
        let of = |path: &str| by_name(path.as_ref());
        assert_eq!((of("a.qcow2"), of("/x/B.VMDK")), (Some(FileFormat::Qcow2), Some(FileFormat::Vmdk)));
        assert_eq!([of("disk.img"), of("disk"), of(".raw")], [None; 3]);
    }
}
