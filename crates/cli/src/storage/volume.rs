//! `ninefold volume`: the disks of VMs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ninefold_model::VolumeName;
use ninefold_shell::Output;
use ninefold_volume::Format;
use ninefold_volume::pool::{CutOff, Import, Kind};

use super::file::OuterFile;
use super::size::Size;
use super::{At, in_pool, show, work};
use crate::error::CliError;

/// The disks of VMs in this host's storage pool
///
/// A VM finds a volume by its name in the VM's specification; each of its hosts has one of its own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold volume create db-data --size 20G\n  \
    ninefold volume import db-root debian.qcow2 --size 10G\n  \
    ninefold volume list\n  \
    ninefold volume list --pool /srv/pool")]
pub struct VolumeArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(CreateArgs),
    List(ListArgs),
    Info(InfoArgs),
    Grow(GrowArgs),
    Shrink(ShrinkArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    Adopt(AdoptArgs),
    Remove(RemoveArgs),
}

/// Make an empty volume
///
/// All of it reads as zero and takes no room until it is written. The pool is made if it is not there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold volume create db-data --size 20G\n  \
    ninefold volume create scratch --size 512M --format qcow2\n\n\
    With --json: the volume, as `ninefold volume info` shows it.")]
pub struct CreateArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    /// Bytes, or with K, M, G or T; a multiple of 512
    #[arg(long)]
    size: Size,
    /// How it is kept: raw (fastest) or qcow2
    #[arg(long, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    at: At,
}

/// List the volumes
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold volume list\n  \
    ninefold volume list --json | jq '.volumes[] | select(.holder == null).name'\n\n\
    With --json: pool, free (bytes) and volumes; a damaged one has a name and an error.")]
pub struct ListArgs {
    #[command(flatten)]
    at: At,
}

/// Show one volume
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold volume info db-data\n  ninefold volume info db-data --json | jq .size")]
pub struct InfoArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    at: At,
}

/// Make a volume larger, while nobody has it open
///
/// The new bytes are zero. A VM's volume has to have the size that the VM's specification says, on each of its hosts: grow
/// it on all, then change the specification.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold volume grow db-data 40G")]
pub struct GrowArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    /// The new size
    size: Size,
    #[command(flatten)]
    at: At,
}

/// Make a volume smaller, while nobody has it open
///
/// Refused while there is anything but zeros behind the new end. File systems in it have to be shrunk by the guest before.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold volume shrink db-data 10G\n  \
    ninefold volume shrink db-data 10G --discard-data     what is behind 10 GiB is lost")]
pub struct ShrinkArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    /// The new size
    size: Size,
    /// Cut off what is behind the new end, whatever it is: it is lost for ever
    #[arg(long)]
    discard_data: bool,
    #[command(flatten)]
    at: At,
}

/// Make a volume of a disk image from elsewhere
///
/// A file that leads to further files (a backing file, extents) is refused: it could name any file of this host.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold volume import db-root debian.qcow2\n  \
    ninefold volume import db-root cloud.img --file-format qcow2 --size 10G\n  \
    ninefold volume import legacy win.vmdk --format qcow2\n\n\
    Interrupted or failed, it leaves nothing. With --json: the volume, as `ninefold volume info` shows it.")]
pub struct ImportArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    file: OuterFile,
    /// How it is kept: raw (fastest) or qcow2
    #[arg(long, default_value_t = Format::Raw)]
    format: Format,
    /// The volume's size, if it is to be larger than the image
    #[arg(long)]
    size: Option<Size>,
    #[command(flatten)]
    at: At,
}

/// Write a volume to a new file, while nobody has it open
///
/// The file stands alone, also that of a thin clone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold volume export db-data /backup/db-data.qcow2\n  \
    ninefold volume export db-data /backup/db-data --file-format raw")]
pub struct ExportArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    file: OuterFile,
    #[command(flatten)]
    at: At,
}

/// Make a volume of a whole block device (a LUN, a logical volume, a partition)
///
/// Its bytes are the volume's, as they are; from then on the device is the VM's alone. Name it by a path that stays, such
/// as those in /dev/disk/by-id.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold volume adopt db-data /dev/disk/by-id/wwn-0x5000c500a1b2c3d4")]
pub struct AdoptArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    /// The device, under /dev
    device: PathBuf,
    #[command(flatten)]
    at: At,
}

/// Remove a volume, for ever
///
/// Refused while somebody has it open. An adopted device is let go of; its bytes stay.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold volume remove db-data")]
pub struct RemoveArgs {
    /// Its name: 1 to 32 lower-case letters, digits and inner hyphens
    name: VolumeName,
    #[command(flatten)]
    at: At,
}

pub fn run(args: VolumeArgs, output: &Output) -> Result<(), CliError> {
    match args.verb {
        Verb::Create(args) => create(&args, output),
        Verb::List(args) => show::list(&args.at.open()?, Kind::Volume, output),
        Verb::Info(args) => show::one(&args.at.open()?, Kind::Volume, &args.name, output),
        Verb::Grow(args) => {
            let pool = args.at.open()?;
            pool.grow(&args.name, args.size.0).map_err(in_pool(pool.root()))?;
            show::one(&pool, Kind::Volume, &args.name, output)
        }
        Verb::Shrink(args) => shrink(&args, output),
        Verb::Import(args) => import(&args, output),
        Verb::Export(args) => work::export(&args.at.open()?, Kind::Volume, &args.name, &args.file, output),
        Verb::Adopt(args) => {
            let pool = args.at.make()?;
            pool.adopt(&args.name, &args.device).map_err(in_pool(pool.root()))?;
            show::one(&pool, Kind::Volume, &args.name, output)
        }
        Verb::Remove(args) => show::remove(&args.at.open()?, Kind::Volume, &args.name, output),
    }
}

fn create(args: &CreateArgs, output: &Output) -> Result<(), CliError> {
    let pool = args.at.make()?;
    pool.create(&args.name, args.size.0, args.format).map_err(in_pool(pool.root()))?;
    show::one(&pool, Kind::Volume, &args.name, output)
}

fn shrink(args: &ShrinkArgs, output: &Output) -> Result<(), CliError> {
    let pool = args.at.open()?;
    let cut = if args.discard_data { CutOff::AllowDataLoss } else { CutOff::MustBeZero };
    let bar = ninefold_shell::progress::spinner("looking for data behind the new end");
    let done = pool.shrink(&args.name, args.size.0, cut);
    bar.finish_and_clear();
    done.map_err(in_pool(pool.root()))?;
    show::one(&pool, Kind::Volume, &args.name, output)
}

fn import(args: &ImportArgs, output: &Output) -> Result<(), CliError> {
    let what = Import {
        source: &args.file.path,
        file_format: args.file.format()?,
        format: args.format,
        size: args.size.map(|size| size.0),
    };
    work::import(&args.at.make()?, Kind::Volume, &args.name, &what, output)
}
