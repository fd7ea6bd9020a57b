//! What to do about an error of a pool.

use std::io;
use std::path::Path;

use ninefold_shell::output::bytes;
use ninefold_volume::{Pool, Refusal, Tools, VolumeError};

/// Advice for an error in the pool at `root`.
pub fn help(root: &Path, error: &VolumeError) -> Option<String> {
    if error.is_out_of_space() {
        return Some(no_space(root));
    }
    let text = match error {
        VolumeError::Busy { path, holder: Some(_) } if path.starts_with(root) => {
            "end that program first; if it is a keeper, by `ninefold vm stop` and SIGTERM for the keeper"
        }
        VolumeError::Busy { .. } => "it is mounted or open: `lsblk` and `fuser -v` show by whom",
        VolumeError::NotFound { .. } => "`ninefold volume list` and `ninefold image list` show what is in the pool",
        VolumeError::Exists { .. } => "choose another name, or remove that one first",
        VolumeError::Damaged { path, .. } if path.starts_with(root) => {
            "for a VM that has a backup, remove it here and let the keeper make it anew from the other host; or \
             `qemu-img check` the image (-r repairs, on a copy)"
        }
        VolumeError::Damaged { .. } => {
            "is it the format that --file-format or the name's ending says? `qemu-img check` tells more about the file"
        }
        VolumeError::NotADevice { .. } => "what is adopted is a whole disk, partition or logical volume: see `lsblk`",
        VolumeError::Encrypted { .. } => {
            "write a plain one with `qemu-img convert`, given its key (--object secret,…); what is to be encrypted is encrypted in the \
             guest, or below the pool"
        }
        VolumeError::NotAnImage { .. } => {
            "a disk image is a regular file; a device is taken by `ninefold volume adopt`"
        }
        VolumeError::Refused { why, .. } => refusal(why),
        VolumeError::Size { .. } => "sizes can be given with K, M, G or T, such as 10G",
        VolumeError::File { what: "cannot run", .. } => "install QEMU's tools (Debian: qemu-utils, qemu-system-common)",
        VolumeError::File { what: "cannot write", source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
            "remove that file or choose another name: nothing is overwritten"
        }
        VolumeError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => "is the path right?",
        VolumeError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run it as root",
        _ => return None,
    };
    Some(text.to_owned())
}

fn refusal(why: &Refusal) -> &'static str {
    match why {
        Refusal::NotLarger { .. } => "`ninefold volume shrink` makes a volume smaller",
        Refusal::NotSmaller { .. } => "`ninefold volume grow` makes a volume larger",
        Refusal::ImageIsLarger { .. } => "give a larger --size, or none: the volume then has the image's",
        Refusal::DataBehindEnd { .. } => {
            "shrink the guest's file systems first; --discard-data cuts off what is behind the new end, for ever"
        }
        Refusal::SizeOfDevice => {
            "change it where the device is made, then `ninefold volume remove` and `adopt` it anew"
        }
        Refusal::SameDevice => "a device is one volume's alone",
        Refusal::HasClone { .. } => "remove that volume first; or export it, and import it as one that stands alone",
        Refusal::MayHaveClone { .. } => "repair or remove that volume first",
        Refusal::LeadsOn { .. } => {
            "flatten the image where it was made: `qemu-img convert` writes one that stands alone"
        }
        Refusal::NoRoom { .. } => {
            "is the image what it should be? If so: remove what is not needed in the pool, or use one on another disk (--pool)"
        }
        Refusal::Mixture { .. } => {
            "it becomes whole when its VM is protected here again, or a snapshot of it is restored; see docs/volumes.md, 'Mixtures'"
        }
        Refusal::Lost { .. } => {
            "start its keeper, which writes it again, or start this host anew; to export what can be read, remove that file. See \
             docs/volumes.md, 'Lost bytes'"
        }
        Refusal::IntoPool => "`ninefold image clone` makes a further volume of an image",
    }
}

fn no_space(root: &Path) -> String {
    let free = Pool::open(root, Tools::default()).and_then(|pool| pool.free());
    let free = free.map_or_else(|_| String::new(), |n| format!(" has {} free", bytes(n)));
    format!(
        "the pool's file system{free}: remove what is not needed there, or use a pool on another (--pool); a new object is \
         made whole or not at all, so nothing of this one is left"
    )
}
