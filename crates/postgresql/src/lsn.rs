//! Log sequence numbers: byte positions in the WAL.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A byte position in the WAL, written as two hexadecimal halves: `0/5000060`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// The text is not an LSN.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an LSN such as 0/5000060")]
pub struct InvalidLsn(String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;
    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_string());
        let (high, low) = text.trim().split_once('/').ok_or_else(invalid)?;
        let half = |s: &str| {
            // from_str_radix accepts a sign; PostgreSQL does not.
            let plain = (1..=8).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(s, 16).ok()).flatten().ok_or_else(invalid)
        };
        Ok(Self((half(high)? << 32) | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_as_postgresql_does() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap().to_string(), "16/B374D848");
        assert_eq!("0/0".parse::<Lsn>().unwrap(), Lsn(0));
        assert!("16/B374D848".parse::<Lsn>().unwrap() < "17/0".parse::<Lsn>().unwrap());
        for bad in ["", "1", "g/0", "1/2/3", "+1/0", "100000000/0", "/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
