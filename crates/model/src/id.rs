//! Who a VM is: an id for ever, whatever it is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::Uuid;

/// The id of a VM: a random UUID (version 4), given to it when it is made and to no other VM ever. The witness, logs, snapshots, TAP
/// devices and sockets are found by it; its name is a label for people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "Uuid")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub struct VmId(Uuid);

/// How one is made, for those who have none.
const MADE: &str = "`ninefold vm new-id` makes one";

/// Why the id of a VM was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the id of a VM, which is a random UUID (version 4): {MADE}")]
pub struct InvalidVmId(String);

impl VmId {
    /// Of 128 random bits. Whoever calls this sees to it that they are.
    #[must_use]
    pub fn random(bits: u128) -> Self {
        Self(Uuid::random(bits))
    }

    /// As it is kept where space matters.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.as_u128().to_be_bytes()
    }

    /// # Errors
    /// They are not those of a random UUID.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, InvalidVmId> {
        let bits = u128::from_be_bytes(bytes);
        let id = Self::random(bits);
        if id.0.as_u128() == bits { Ok(id) } else { Err(InvalidVmId(format!("{bits:032x}"))) }
    }

    /// Its first 8 hexadecimal digits: short enough for the name of an interface, and enough to tell the VMs of a host apart.
    #[must_use]
    pub fn short(self) -> String {
        format!("{:08x}", self.0.as_u128() >> 96)
    }
}

impl FromStr for VmId {
    type Err = InvalidVmId;

    fn from_str(s: &str) -> Result<Self, InvalidVmId> {
        let bad = || InvalidVmId(s.chars().take(48).collect());
        let uuid: Uuid = s.parse().map_err(|_| bad())?;
        Self::from_bytes(uuid.as_u128().to_be_bytes()).map_err(|_| bad())
    }
}

impl From<VmId> for Uuid {
    fn from(id: VmId) -> Uuid {
        id.0
    }
}

impl<'de> Deserialize<'de> for VmId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        // A field that is not there is offered as none: so whoever has forgotten it is told where to get one.
        let text = Option::<String>::deserialize(deserializer)?;
        let text = text.ok_or_else(|| D::Error::custom(format_args!("a VM has to have an `id`: {MADE}")))?;
        text.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4";

    #[test]
    fn an_id_is_a_random_uuid_and_nothing_else() {
        let id: VmId = ID.parse().unwrap();
        assert_eq!((id.to_string(), id.short()), (ID.to_owned(), "3f0e1c4a".to_owned()));
        assert_eq!(VmId::from_bytes(id.to_bytes()), Ok(id));
        assert_eq!(ID.to_uppercase().parse(), Ok(id));
        // Versions that are made of a name or a time are not chosen at random; another variant is no version at all.
        for bad in
            ["", "db", &ID[..35], &ID.replace("-4b", "-8b"), &ID.replace("-4b", "-1b"), &ID.replace("-9c", "-1c")]
        {
            let said = bad.parse::<VmId>().unwrap_err().to_string();
            assert!(said.contains("`ninefold vm new-id`") && said.contains(bad), "{said}");
        }
        assert!(VmId::from_bytes([7; 16]).is_err());
        assert!(VmId::random(0) < VmId::random(1));
    }

    #[test]
    fn who_has_forgotten_it_is_told_where_to_get_one() {
        #[derive(Debug, Deserialize)]
        struct Spec {
            id: VmId,
        }
        let read = |text: &str| serde_json::from_str::<Spec>(text);
        assert_eq!(read(&format!(r#"{{"id":"{ID}"}}"#)).unwrap().id.to_string(), ID);
        assert_eq!(serde_json::to_string(&ID.parse::<VmId>().unwrap()).unwrap(), format!("\"{ID}\""));
        for missing in ["{}", r#"{"id":null}"#] {
            let said = read(missing).unwrap_err().to_string();
            assert!(said.contains("has to have an `id`: `ninefold vm new-id` makes one"), "{said}");
        }
        let said = read(r#"{"id":"db"}"#).unwrap_err().to_string();
        assert!(said.contains("'db' is not the id of a VM"), "{said}");
    }
}
