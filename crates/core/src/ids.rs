//! Ids that are derived, not drawn: a crash between minting an id and recording it then changes nothing.

use sha2::{Digest, Sha256};

/// Length of data set and history ids.
const LENGTH: usize = 8;

fn derive(purpose: &str, uid: &str) -> String {
    let digest = Sha256::digest(format!("holdfast/{purpose}/{uid}"));
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    // A label and a volume name may begin with a digit, yet a letter in front is easier to read and to quote in YAML.
    format!("d{}", &hex[..LENGTH - 1])
}

/// Id of the data set (one generation of volumes) that begins with this object: a Database, or a Restore.
pub fn data_set(uid: &str) -> String {
    derive("data-set", uid)
}

/// Id of the archive history that begins with this object: a Database, or a Restore.
pub fn history(uid: &str) -> String {
    derive("history", uid)
}

/// A short, stable suffix for the names of an object's children, from its uid and a purpose.
pub fn short(purpose: &str, uid: &str) -> String {
    derive(purpose, uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_labels_and_differ_by_purpose() {
        let uid = "0b5ab4a6-7a4d-4f0e-9f5c-0a40fca0c1ff";
        assert_eq!(data_set(uid), data_set(uid));
        assert_ne!(data_set(uid), history(uid));
        assert_eq!(data_set(uid).len(), LENGTH);
        assert!(data_set(uid).chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
