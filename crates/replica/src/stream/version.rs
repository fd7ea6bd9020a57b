//! Versions of the stream.

/// The version that this release speaks.
pub const VERSION: u16 = 4;

/// The oldest version that this release speaks: the one before [`VERSION`], once there is one that was released.
pub const OLDEST_VERSION: u16 = 4;
