//! Reads request paths and queries. Pure.

use std::collections::BTreeMap;

/// What a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub group: String,
    pub version: String,
    /// Empty: the group's discovery document.
    pub plural: String,
    /// Empty: all namespaces, or none.
    pub namespace: String,
    /// Empty: the collection.
    pub name: String,
    /// Empty: the object itself.
    pub subresource: String,
}

/// Reads a path. `None`: it is none of the API's.
pub(crate) fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let (mut target, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => (Target { version: (*version).into(), ..Target::default() }, rest),
        ["apis", group, version, rest @ ..] => {
            (Target { group: (*group).into(), version: (*version).into(), ..Target::default() }, rest)
        }
        _ => return None,
    };
    let rest = match rest {
        // Without more, or with a subresource of the namespace itself, it is the Namespace object.
        ["namespaces", namespace, plural, more @ ..]
            if !(target.group.is_empty() && matches!(*plural, "status" | "finalize")) =>
        {
            target.namespace = (*namespace).into();
            [&[*plural], more].concat()
        }
        other => other.to_vec(),
    };
    match rest.as_slice() {
        [] => {}
        [plural] => target.plural = (*plural).into(),
        [plural, name] => (target.plural, target.name) = ((*plural).into(), (*name).into()),
        [plural, name, subresource] => {
            (target.plural, target.name) = ((*plural).into(), (*name).into());
            target.subresource = (*subresource).into();
        }
        _ => return None,
    }
    Some(target)
}

/// The query's parameters, decoded.
pub(crate) fn query(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        };
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => match after.get(..2).and_then(hex) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                None => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> [String; 6] {
        let t = target(path).unwrap();
        [t.group, t.version, t.namespace, t.plural, t.name, t.subresource]
    }

    #[test]
    fn paths_name_collections_objects_and_subresources() {
        assert_eq!(parts("/api/v1/namespaces/shop/pods"), ["", "v1", "shop", "pods", "", ""]);
        assert_eq!(parts("/api/v1/namespaces/shop"), ["", "v1", "", "namespaces", "shop", ""]);
        assert_eq!(parts("/api/v1/namespaces/shop/status"), ["", "v1", "", "namespaces", "shop", "status"]);
        assert_eq!(
            parts("/apis/example.test/v2/namespaces/shop/things/one/status"),
            ["example.test", "v2", "shop", "things", "one", "status"]
        );
        assert_eq!(parts("/apis/example.test/v2"), ["example.test", "v2", "", "", "", ""]);
        assert_eq!(target("/version"), None);
    }

    #[test]
    fn queries_are_decoded() {
        let q = query("&watch=true&labelSelector=a%3Db%2Cc+in+%28d%29");
        assert_eq!(q["watch"], "true");
        assert_eq!(q["labelSelector"], "a=b,c in (d)");
    }
}
