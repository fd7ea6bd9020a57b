//! Checks of the repository itself, for `make test`. Nothing of the product is in here.
//!
//! * [`tree`]: the repository's files
//! * [`rust`]: a Rust file, taken apart into code and comments
//! * [`markdown`]: the links, headings and words in code of a document
//! * [`links`]: whether links, paths and numbers of decisions lead somewhere
//! * [`imports`]: which file uses which, and circles
//! * [`picture`]: the same as a picture
//! * [`packages`]: what Cargo says about the packages of the workspace and all that they depend on

pub mod imports;
pub mod links;
pub mod markdown;
pub mod packages;
pub mod picture;
pub mod rust;
pub mod tree;
