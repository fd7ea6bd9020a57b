//! The programs that the lab starts, built from the sources as they are.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

/// Builds keeper and witness, once in a test process. NINEFOLD_BIN_DIR says that they have been built already.
pub fn build() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        if std::env::var_os("NINEFOLD_BIN_DIR").is_some() {
            return;
        }
        // TARGET/PROFILE/deps/fault_matrix-…
        let program = std::env::current_exe().unwrap();
        let profile = program.ancestors().nth(2).expect("Cargo's directory of this test").to_owned();
        let target = profile.parent().expect("Cargo's target directory");
        let release = profile.file_name().is_some_and(|p| p == "release");
        let built = Command::new(env!("CARGO"))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
            .args(["build", "--quiet", "--locked", "--bins", "-p", "ninefold-keeper", "-p", "ninefold-witness"])
            .args(["--features", "ninefold-keeper/fault-points"])
            .args(release.then_some("--release"))
            .env("CARGO_TARGET_DIR", target)
            .status()
            .unwrap();
        assert!(built.success(), "the programs cannot be built");
    });
}
