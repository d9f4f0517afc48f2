//! Who may write to a history. Touches the store.
//!
//! Two data sets that write to one history would mix two lines of data under the same names. So the first one leaves its id in
//! `owner.json`, decided by the store itself, and everyone looks there before the first write. The data set and not the Database: a
//! Database that is deleted and made again adopts its volumes and goes on with the same history.

use crate::{HistoryFolder, Store, StoreError};
use serde::{Deserialize, Serialize};

/// Content of `owner.json`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The data set.
    pub data_set: String,
}

/// Why one may not write.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Another data set owns the history.
    #[error("{location} says that the history belongs to data set {owner}, not {claimant}")]
    Another {
        /// Where `owner.json` lies.
        location: String,
        /// Whom it names.
        owner: String,
        /// Who asked.
        claimant: String,
    },
    /// `owner.json` cannot be read, so nobody knows: nobody writes.
    #[error("{location} cannot be read: {why}")]
    Unreadable {
        /// Where it lies.
        location: String,
        /// Why not.
        why: String,
    },
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OwnerError {
    /// CamelCase, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Another { .. } => "HistoryOwnedByAnother",
            Self::Unreadable { .. } => "OwnerUnreadable",
            Self::Store(error) => error.reason,
        }
    }

    /// Whether trying again cannot help before something is put right by hand.
    pub fn permanent(&self) -> bool {
        match self {
            Self::Another { .. } | Self::Unreadable { .. } => true,
            Self::Store(error) => error.permanent,
        }
    }
}

/// Takes the history for this data set, or finds that it has it already.
///
/// # Errors
/// [`OwnerError::Another`] when another data set has it.
pub async fn claim(store: &Store, folder: &HistoryFolder, data_set: &str) -> Result<(), OwnerError> {
    let key = folder.owner();
    let mine = Owner { data_set: data_set.to_string() };
    let bytes = serde_json::to_vec(&mine).map_err(|e| unreadable(store, &key, &e))?;
    // Reading first: this is asked often and answered with yes nearly always.
    let there = match store.find(&key).await? {
        Some(there) => there,
        None => match store.put_new(&key, bytes.into()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.already_exists() => store.get(&key).await?,
            Err(error) => return Err(error.into()),
        },
    };
    let owner: Owner = serde_json::from_slice(&there).map_err(|e| unreadable(store, &key, &e))?;
    if owner == mine {
        return Ok(());
    }
    Err(OwnerError::Another {
        location: store.location(&key),
        owner: owner.data_set,
        claimant: mine.data_set,
    })
}

fn unreadable(store: &Store, key: &str, why: &serde_json::Error) -> OwnerError {
    OwnerError::Unreadable { location: store.location(key), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::wire::HistoryPath;

    #[tokio::test]
    async fn the_first_to_ask_owns_a_history_for_good() {
        let temporary = tempfile::tempdir().unwrap();
        let store = Store::at(temporary.path()).unwrap();
        let folder = HistoryFolder::new(&HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: "7".into(),
            history: "d1".into(),
        });
        claim(&store, &folder, "one").await.unwrap();
        claim(&store, &folder, "one").await.unwrap();
        let error = claim(&store, &folder, "two").await.unwrap_err();
        assert_eq!(error.reason(), "HistoryOwnedByAnother");
        store.put(&folder.owner(), "nonsense".into()).await.unwrap();
        assert_eq!(claim(&store, &folder, "one").await.unwrap_err().reason(), "OwnerUnreadable");
    }
}
