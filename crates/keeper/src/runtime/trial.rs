//! Whether an image can be tried on this host.

use ninefold_model::health::{HealthySign, MAX_IMAGE};
use ninefold_model::spec::Boot;

/// Looks whether the image can be tried here.
///
/// # Errors
/// Why not: its description, or a file of it.
pub fn usable(image: &Boot, sign: &HealthySign) -> Result<(), String> {
    let size = serde_json::to_vec(&(image, sign)).map_or(usize::MAX, |text| text.len());
    if size > MAX_IMAGE {
        return Err(format!("the image's description has {size} bytes: {MAX_IMAGE} are possible"));
    }
    if matches!(sign, HealthySign::Console { text } if text.is_empty()) {
        return Err("an empty text is no sign of health".into());
    }
    let files = match image {
        Boot::Linux { kernel, initrd, .. } => vec![Some(kernel), initrd.as_ref()],
        Boot::BootSector { image } => vec![Some(image)],
        // Its volume is where the committed image is, too: there would be nothing to fall back to.
        Boot::Volume => return Err("a trial needs an image of its own: the VM's volume is none".into()),
    };
    for path in files.into_iter().flatten() {
        if !path.is_absolute() {
            return Err(format!("{} is no absolute path", path.display()));
        }
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(format!("{} is no file", path.display())),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(())
}
