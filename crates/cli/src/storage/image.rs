//! `ninefold image`: golden images, which disks are made from.

use clap::{Args, Subcommand};
use ninefold_model::VolumeName;
use ninefold_shell::Output;
use ninefold_volume::Format;
use ninefold_volume::pool::{Import, Kind};

use super::file::OuterFile;
use super::size::Size;
use super::work::{self, Work};
use super::{At, in_pool, show};
use crate::error::CliError;

/// Golden images in this host's storage pool, which volumes are made from
///
/// A golden image is never written. Thin clones of it keep only what differs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold image import debian debian.qcow2\n  \
    ninefold image clone debian db-root --size 10G\n  \
    ninefold image list")]
pub struct ImageArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Import(ImportArgs),
    List(ListArgs),
    Info(InfoArgs),
    Clone(CloneArgs),
    Export(ExportArgs),
    Remove(RemoveArgs),
}

/// Make a golden image of a disk image from elsewhere
///
/// A file that leads to further files (a backing file, extents) is refused: it could name any file of this host. The pool
/// is made if it is not there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold image import debian debian.qcow2\n  \
    ninefold image import debian cloud.img --file-format qcow2 --format qcow2\n\n\
    Interrupted or failed, it leaves nothing. With --json: the image, as `ninefold image info` shows it.")]
pub struct ImportArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    file: OuterFile,
    /// How it is kept: raw (fastest) or qcow2
    #[arg(long, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    at: At,
}

/// List the golden images
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold image list\n  \
    ninefold image list --json | jq '.images[] | select(.clones == []).name'\n\n\
    With --json: pool, free (bytes) and images; a damaged one has a name and an error.")]
pub struct ListArgs {
    #[command(flatten)]
    at: At,
}

/// Show one golden image and its thin clones
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold image info debian\n  ninefold image info debian --json | jq .clones")]
pub struct InfoArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    at: At,
}

/// Make a volume that begins as a golden image does
///
/// In format qcow2 it is a thin clone: made at once, keeps only what differs, and needs the image for as long as it lives.
/// In format raw it is a copy that stands alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold image clone debian db-root --size 10G\n  \
    ninefold image clone debian db-root --format raw\n\n\
    Do the same on each of the VM's hosts: then a first resync sends nothing. With --json: the volume.")]
pub struct CloneArgs {
    /// The golden image
    image: VolumeName,
    /// The new volume
    volume: VolumeName,
    /// The volume's size, if it is to be larger than the image
    #[arg(long)]
    size: Option<Size>,
    /// qcow2 for a thin clone, raw for a copy
    #[arg(long, default_value_t = Format::Qcow2)]
    format: Format,
    #[command(flatten)]
    at: At,
}

/// Write a golden image to a new file
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold image export debian /srv/debian.qcow2")]
pub struct ExportArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    file: OuterFile,
    #[command(flatten)]
    at: At,
}

/// Remove a golden image, for ever
///
/// Refused while a thin clone needs it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold image remove debian")]
pub struct RemoveArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    at: At,
}

pub fn run(args: ImageArgs, output: &Output) -> Result<(), CliError> {
    match args.verb {
        Verb::Import(args) => import(&args, output),
        Verb::List(args) => show::list(&args.at.open()?, Kind::Golden, output),
        Verb::Info(args) => show::one(&args.at.open()?, Kind::Golden, &args.name, output),
        Verb::Clone(args) => clone(&args, output),
        Verb::Export(args) => work::export(&args.at.open()?, Kind::Golden, &args.name, &args.file, output),
        Verb::Remove(args) => show::remove(&args.at.open()?, Kind::Golden, &args.name, output),
    }
}

fn import(args: &ImportArgs, output: &Output) -> Result<(), CliError> {
    let (source, file_format) = (&*args.file.path, args.file.format()?);
    let pool = args.at.make()?;
    let what = Import { source, file_format, format: args.format, size: None };
    work::import(&pool, Kind::Golden, &args.name, &what, output)
}

fn clone(args: &CloneArgs, output: &Output) -> Result<(), CliError> {
    let pool = args.at.open()?;
    let work = Work::begin(&format!("cloning image '{}'", args.image))?;
    let size = args.size.map(|size| size.0);
    let done = pool.create_from(&args.volume, &args.image, size, args.format, &mut work.progress());
    drop(work);
    done.map_err(in_pool(pool.root()))?;
    show::one(&pool, Kind::Volume, &args.volume, output)
}
