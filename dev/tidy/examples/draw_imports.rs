//! Draws which file uses which: `cargo run -p ninefold-tidy --example draw_imports FILE.svg` (`make imports`). Says the circles.

use std::process::ExitCode;

use ninefold_tidy::tree::{Tree, root};
use ninefold_tidy::{imports, picture};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("draw_imports: say the file to write, such as docs/img/imports.svg");
        return ExitCode::FAILURE;
    };
    let written = Tree::read(&root()).and_then(|tree| {
        let graph = imports::read(&tree);
        for circle in graph.circles() {
            let files: Vec<_> = circle.iter().copied().collect();
            println!("circle: {}\n{}", files.join(" "), graph.explain(&circle));
        }
        std::fs::write(&path, picture::draw(&graph))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("draw_imports: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
