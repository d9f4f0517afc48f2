//! What stores say when something goes wrong, as a reason for a condition and a sentence in their own words. Pure.

use std::{error::Error, io, path::Path, time::Duration};

/// Longest message: it has to fit a termination message together with other things.
const LONGEST: usize = 900;

/// A store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct StoreError {
    /// CamelCase, for a condition: `BucketNotFound`, `AccessDenied`, `Unreachable`, `CertificateNotTrusted`, `NotFound`, `AlreadyExists`,
    /// `StoreFull`, `Throttled`, `ClockSkewed`, `CredentialsMissing`, `InvalidCa`, `InvalidStore`, `InvalidKey`, `UploadFailed`, `StoreFailed`.
    pub reason: &'static str,
    /// The store's own words.
    pub message: String,
    /// Trying again cannot help before something is put right by hand.
    pub permanent: bool,
}

impl StoreError {
    /// Reason: there is something under this key already.
    pub const ALREADY_EXISTS: &'static str = "AlreadyExists";
    /// Reason: there is nothing under this key.
    pub const NOT_FOUND: &'static str = "NotFound";

    /// An error of one's own.
    pub fn new(reason: &'static str, message: impl Into<String>, permanent: bool) -> Self {
        Self { reason, message: message.into(), permanent }
    }

    /// Whether there is nothing under the key. A missing bucket is not that: `BucketNotFound`.
    pub fn not_found(&self) -> bool {
        self.reason == Self::NOT_FOUND
    }

    /// Whether there is something under the key already.
    pub fn already_exists(&self) -> bool {
        self.reason == Self::ALREADY_EXISTS
    }

    pub(super) fn late(what: &str, location: &str, deadline: Duration) -> Self {
        Self::new(
            "Unreachable",
            format!("{what} {location}: no answer within {} s", deadline.as_secs()),
            false,
        )
    }

    pub(super) fn file(path: &Path, error: &io::Error) -> Self {
        let (reason, permanent) = of_io(error.kind());
        Self::new(reason, format!("{}: {error}", path.display()), permanent)
    }

    pub(super) fn of(error: object_store::Error) -> Self {
        let words = words(&error);
        let (reason, permanent) = classify(&error, &words);
        Self { reason, message: readable(&words), permanent }
    }
}

/// All texts of an error and its causes, without those that only repeat their cause.
fn words(error: &object_store::Error) -> String {
    let mut all: Vec<String> = Vec::new();
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(current) = next {
        let text = current.to_string();
        if !all.iter().any(|known| known.contains(&text)) {
            all.push(text);
        }
        next = current.source();
    }
    all.join(": ")
}

/// S3 answers with XML. Code and message are for people; the rest may hold the access key and what was signed.
fn readable(words: &str) -> String {
    let between = |tag: &str| {
        let from = words.find(&format!("<{tag}>"))? + tag.len() + 2;
        let to = from + words[from..].find(&format!("</{tag}>"))?;
        Some(&words[from..to])
    };
    let text = match (between("Code"), between("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_string(),
        // Without markup nothing secret is in it; with markup that is not understood only what comes before is shown.
        _ => without_timing(words.split("<").next().unwrap_or_default().trim()),
    };
    let text = text.replace(['\n', '\r'], " ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The client's account of a failed request, without what differs from one try to the next: a condition's message must not change
/// while nothing else does.
fn without_timing(text: &str) -> String {
    let text = text.strip_prefix("Generic S3 error: ").unwrap_or(text);
    let (Some(from), Some(to)) = (text.find("Error performing "), text.find(" - ")) else {
        return text.to_string();
    };
    match text.get(from..to).and_then(|account| account.rfind(" in ")) {
        Some(timing) => format!("{}: {}", &text[..from + timing], &text[to + 3..]),
        None => text.to_string(),
    }
}

fn classify(error: &object_store::Error, words: &str) -> (&'static str, bool) {
    let has = |needle: &str| words.contains(needle);
    // Codes of S3 come first: a missing bucket, for one, is the same HTTP status as a missing object.
    if has("NoSuchBucket") || has("specified bucket does not exist") {
        return ("BucketNotFound", true);
    }
    if has("InvalidBucketName") || has("AuthorizationHeaderMalformed") {
        return ("InvalidStore", true);
    }
    if has("RequestTimeTooSkewed") {
        return ("ClockSkewed", false);
    }
    if has("SlowDown") || has("429 Too Many Requests") {
        return ("Throttled", false);
    }
    if has("invalid peer certificate") || has("UnknownIssuer") {
        return ("CertificateNotTrusted", true);
    }
    let denied = [
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "403 Forbidden",
        "401 Unauthorized",
    ];
    if denied.into_iter().any(has) {
        return ("AccessDenied", true);
    }
    match error {
        object_store::Error::NotFound { .. } => return (StoreError::NOT_FOUND, false),
        object_store::Error::AlreadyExists { .. } => return (StoreError::ALREADY_EXISTS, false),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            return ("AccessDenied", true);
        }
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            return ("NotSupported", true);
        }
        _ => {}
    }
    if has("501 Not Implemented") {
        return ("NotSupported", true);
    }
    if let Some(io) = find_io(error) {
        let known = of_io(io.kind());
        if known.0 != "StoreFailed" {
            return known;
        }
    }
    let unreachable = [
        "error sending request",
        "connect",
        "dns error",
        "timed out",
        "operation timed out",
        "connection closed",
        "broken pipe",
    ];
    let lower = words.to_lowercase();
    if unreachable.into_iter().any(|needle| lower.contains(needle)) {
        return ("Unreachable", false);
    }
    ("StoreFailed", false)
}

fn find_io(error: &object_store::Error) -> Option<&io::Error> {
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(current) = next {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = current.source();
    }
    None
}

fn of_io(kind: io::ErrorKind) -> (&'static str, bool) {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, TimedOut,
    };
    match kind {
        StorageFull | QuotaExceeded => ("StoreFull", false),
        PermissionDenied | ReadOnlyFilesystem => ("AccessDenied", true),
        ConnectionRefused
        | ConnectionReset
        | ConnectionAborted
        | HostUnreachable
        | NetworkUnreachable
        | TimedOut
        | StaleNetworkFileHandle => ("Unreachable", false),
        _ => ("StoreFailed", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: &str, body: &str) -> object_store::Error {
        let text = format!(
            "Error performing PUT http://s3/b/k in 1ms - Server returned non-2xx status code: {status}: {body}"
        );
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn says_what_s3_says_and_nothing_that_was_signed() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>The signature we calculated does not match</Message>\
                    <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId><StringToSign>x</StringToSign></Error>";
        let error = StoreError::of(answer("403 Forbidden", body));
        assert_eq!((error.reason, error.permanent), ("AccessDenied", true));
        assert_eq!(error.message, "SignatureDoesNotMatch: The signature we calculated does not match");
        let strange = StoreError::of(answer("403 Forbidden", "<html>AKIASECRET</html>"));
        assert!(!strange.message.contains("AKIA"), "{}", strange.message);
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let body =
            "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
        let source = answer("404 Not Found", body).to_string().into();
        let error = StoreError::of(object_store::Error::NotFound { path: "k".into(), source });
        assert_eq!((error.reason, error.permanent), ("BucketNotFound", true));
        let error =
            StoreError::of(object_store::Error::NotFound { path: "k".into(), source: "no such key".into() });
        assert!(error.not_found() && !error.permanent);
    }

    #[test]
    fn the_same_failure_has_the_same_words_each_time() {
        let said = |elapsed: &str, retries: u8| {
            let text = format!(
                "Error performing PUT https://s3/b/k in {elapsed}, after {retries} retries, max_retries: 4, retry_timeout: 20s  - \
                 HTTP error: error sending request: Connection refused"
            );
            StoreError::of(object_store::Error::Generic { store: "S3", source: text.into() }).message
        };
        assert_eq!(said("1.2s", 3), said("987ms", 4));
        assert_eq!(
            said("1s", 1),
            "Error performing PUT https://s3/b/k: HTTP error: error sending request: Connection refused"
        );
    }

    #[test]
    fn knows_full_and_read_only_volumes_and_untrusted_certificates() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error =
            StoreError::of(object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(full) });
        assert_eq!((error.reason, error.permanent), ("StoreFull", false));
        let tls = "error sending request: client error (Connect): invalid peer certificate: UnknownIssuer";
        let error = StoreError::of(object_store::Error::Generic { store: "S3", source: tls.into() });
        assert_eq!(error.reason, "CertificateNotTrusted");
        let refused = "error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)";
        let error = StoreError::of(object_store::Error::Generic { store: "S3", source: refused.into() });
        assert_eq!((error.reason, error.permanent), ("Unreachable", false));
    }
}
