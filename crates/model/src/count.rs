//! Terms and epochs, the two counters that order everything; and the lives of a keeper.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub struct $name(pub u64);

        impl $name {
            /// The next one. Saturates: 2^64 is not reached in practice, and a hostile peer that claims it gains
            /// nothing by it.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// The version of a VM's witness record: every change of it adds one.
    Term
}
counter! {
    /// One round of running and checkpointing, counted from 1 in each replication session.
    Epoch
}
counter! {
    /// One life of one keeper's process: microseconds since the Unix epoch at its start, raised above that of its former life on this host. So it
    /// tells two lives apart, and which of them was later also when the clock was set back.
    Incarnation
}
