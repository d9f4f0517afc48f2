//! Texts that people and programs put into fields by mistake or on purpose, by what the field is about. Pure.

/// What a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// An amount, as Kubernetes writes it.
    Quantity,
    /// Five fields of cron.
    Cron,
    /// A zone of the IANA database.
    Zone,
    /// A moment.
    Time,
    /// A position in the WAL.
    Lsn,
    /// A transaction.
    Xid,
    /// The name of another object.
    Name(&'static str),
    /// Anything else.
    Text,
}

/// Objects of the scene that a reference of each sort may name by mistake: one of the right kind that is not the one that
/// belongs here, or one of the right kind with other contents.
const OTHERS: [(&str, &str); 10] = [
    ("storeRef.name", "other"),
    ("databaseRef.name", "ledger"),
    ("newDatabase.name", "orders"),
    ("source.database.name", "ledger"),
    ("backupRef.name", "before"),
    ("credentialsSecretRef.name", "orders-app"),
    ("caSecretRef.name", "orders-app"),
    ("imagePullSecrets[0].name", "orders-app"),
    ("volume.claimName", "other-backups"),
    ("priorityClassName", "system-node-critical"),
];

/// What the field at a path means.
pub fn meaning(path: &str) -> Meaning {
    let ends = |suffix: &str| path.ends_with(suffix);
    if let Some((_, other)) = OTHERS.iter().find(|(suffix, _)| ends(suffix)) {
        return Meaning::Name(other);
    }
    if ends("storage.size") || path.contains(".requests.") || path.contains(".limits.") {
        Meaning::Quantity
    } else if ends("spec.schedule") {
        Meaning::Cron
    } else if ends("spec.timeZone") {
        Meaning::Zone
    } else if ends("pointInTime.time") {
        Meaning::Time
    } else if ends("pointInTime.lsn") {
        Meaning::Lsn
    } else if ends("pointInTime.xid") {
        Meaning::Xid
    } else {
        Meaning::Text
    }
}

/// A text that the field at a path accepts.
pub fn sample(path: &str) -> &'static str {
    const SAMPLES: [(&str, &str); 24] = [
        ("storeRef.name", "main"),
        ("databaseRef.name", "orders"),
        ("source.database.name", "orders"),
        ("newDatabase.name", "copy"),
        ("backupRef.name", "before"),
        ("claimName", "backups"),
        ("storage.size", "1Gi"),
        ("storageClassName", "standard"),
        ("s3.bucket", "backups"),
        ("pointInTime.time", "2026-01-01T00:00:00Z"),
        ("pointInTime.lsn", "0/5000060"),
        ("pointInTime.xid", "777"),
        ("checks[0].sql", "select 1"),
        ("checks[0].expect", "1"),
        (".cpu", "500m"),
        (".memory", "1Gi"),
        (".shared_buffers", "128MB"),
        (".work_mem", "4MB"),
        (".max_connections", "50"),
        ("pgHba[0]", "host all all 10.0.0.0/8 scram-sha-256"),
        ("tolerations[0].operator", "Exists"),
        ("tolerations[0].effect", "NoSchedule"),
        ("spec.image", "registry.example/postgres:17.6"),
        ("systemIdentifier", "7501000000000000001"),
    ];
    SAMPLES.iter().find(|(suffix, _)| path.ends_with(suffix)).map_or("sample", |(_, text)| text)
}

/// Keys that stand for all keys of the map at a path.
pub fn keys(path: &str) -> &'static [&'static str] {
    match path.rsplit('.').next() {
        Some("requests" | "limits") => &["cpu", "memory"],
        Some("parameters") => &["max_connections", "shared_buffers", "work_mem"],
        Some("nodeSelector") => &["disktype"],
        Some("labels") => &["team"],
        _ => &["example.com/note"],
    }
}

/// Keys that somebody may try in the map at a path, each with a value.
pub fn hostile_keys(path: &str) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&str, String)> = match path.rsplit('.').next() {
        Some("requests" | "limits") => vec![
            ("device", "nvidia.com/gpu".into()),
            ("foreign", "bogus".into()),
            ("huge-pages", "hugepages-2Mi".into()),
            ("disk", "ephemeral-storage".into()),
        ],
        Some("parameters") => {
            let managed =
                ["archive_command", "synchronous_standby_names", "ssl", "fsync", "wal_level", "port"];
            let mut keys: Vec<(&str, String)> = managed.iter().map(|k| ("managed", k.to_string())).collect();
            keys.extend([
                ("unknown", "no_such_parameter".to_string()),
                ("extension", "pg_stat_statements.max".into()),
                ("include", "include_dir".into()),
            ]);
            keys
        }
        _ => vec![
            ("ours", "holdfast.dev/database".into()),
            ("ours", "holdfast.dev/restarted".into()),
            ("kubernetes", "app.kubernetes.io/instance".into()),
            ("kubernetes", "kubernetes.io/hostname".into()),
            ("slashes", "a/b/c".into()),
            ("long-name", format!("example.com/{}", "a".repeat(64))),
            ("long-prefix", format!("{}/a", "a".repeat(254))),
        ],
    };
    all.extend([
        ("empty", String::new()),
        ("uppercase", "NOTE".into()),
        ("blank", "a b".into()),
        ("newline", "a\nb".into()),
        ("unicode", "größe-Ω".into()),
        ("substitution", "$(id)".into()),
        ("traversal", "../a".into()),
    ]);
    all
}

/// Texts with something wrong in them wherever a text is asked for; the first few are the worst.
fn nonsense() -> Vec<(&'static str, String)> {
    vec![
        ("newline", "a\nb: c".into()),
        ("unicode", "größe-Ω-🐘".into()),
        ("traversal", "../../etc/passwd".into()),
        ("substitution", "$(id)`id`${HOME}$(POD_NAME)".into()),
        ("uppercase", "ORDERS".into()),
        ("quote", "a'b\"c\\".into()),
        ("blank", " ".into()),
        ("nul", "a\u{0}b".into()),
        ("dash", "-a".into()),
        ("yaml", "true".into()),
    ]
}

/// How many of the general texts are tried, where a field of one sort occurs in many places.
pub const FEW: usize = 1;

/// Texts to try at a path, each with the word for what is wrong with it. `most`: how many of those that fit everywhere.
pub fn hostile(path: &str, most: usize) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&str, String)> = Vec::new();
    let mut add = |word: &'static str, texts: &[&str]| {
        all.extend(texts.iter().map(|text| (word, text.to_string())));
    };
    let mut general = most;
    match meaning(path) {
        Meaning::Quantity => {
            general = 2;
            add("zero", &["0"]);
            add("negative", &["-1Gi"]);
            add("huge", &["1e30", "999999Ti", "9223372036854775808"]);
            add("fraction", &["1.5", "0.1Gi", "100m", "1n"]);
            add("unit", &["10GB", "10gi", "10 Gi", "Gi"]);
            add("not-a-number", &["NaN", "0x10", "1e"]);
            if path.ends_with("storage.size") {
                add("minimum", &["256Mi"]);
                add("below-minimum", &["255Mi"]);
                add("other-spelling", &["10240Mi", "10737418240", "10.0Gi", "+10Gi"]);
                add("smaller", &["5Gi"]);
                add("larger", &["20Gi", "10241Mi", "10737418241"]);
            } else {
                add("other", &["2", "1Gi", "200m", "2Gi"]);
            }
        }
        Meaning::Cron => {
            // Nothing here is due soon: a schedule that always runs never comes to rest.
            add("rare", &["0 0 29 2 *", "59 23 31 12 *", "@yearly", "0 0 1 1 0", "  0   0  1  1  *  "]);
            add("gap", &["30 2 29 3 *", "30 2 25 10 *"]);
            add("never", &["0 0 30 2 *", "0 0 31 4 *"]);
            add("fields", &["0 30 2 * * *", "30 2 * *", "* * * * * * *"]);
            add(
                "range",
                &["60 2 * * *", "30 24 * * *", "30 2 0 * *", "30 2 * 13 *", "30 2 * * 8", "5-1 2 1 1 *"],
            );
            add("step", &["*/0 0 1 1 *", "0/100 0 1 1 *", "*/99999999999 0 1 1 *", "0 0 1-31/40 1 *"]);
            add("macro", &["@reboot", "@every 1h", "@YEARLY", "@", "@yearly ", "CRON_TZ=UTC 0 0 1 1 *"]);
            add("names", &["0 0 1 JAN sun", "0 0 1 january *", "0 0 L * *", "0 0 ? 1 *", "0 0 1W 1 *"]);
        }
        Meaning::Zone => {
            add("other", &["America/New_York", "Pacific/Apia", "Australia/Lord_Howe", "UTC", "Etc/GMT+12"]);
            add("case", &["europe/paris", "EUROPE/PARIS"]);
            add("offset", &["+02:00", "UTC+2", "GMT-5"]);
            add("unknown", &["Mars/Olympus", "Local", "posixrules", "CEST", "Europe/"]);
        }
        Meaning::Time => {
            add("past", &["1970-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2000-01-01T00:00:00Z"]);
            add("future", &["9999-12-31T23:59:59Z", "2100-01-01T00:00:00Z"]);
            add("other-zone", &["2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00.123456789Z"]);
            add("gap", &["2026-03-29T02:30:00+01:00"]);
            add(
                "invalid",
                &[
                    "2026-02-30T00:00:00Z",
                    "2026-01-01T25:00:00Z",
                    "2026-01-01T00:00:60Z",
                    "2026-01-01T00:00:00+99:00",
                ],
            );
            add(
                "form",
                &[
                    "2026-01-01",
                    "2026-01-01T00:00:00",
                    "2026-01-01 00:00:00Z",
                    "1767225600",
                    "yesterday",
                    "now",
                ],
            );
        }
        Meaning::Lsn => {
            add("zero", &["0/0"]);
            add("huge", &["FFFFFFFF/FFFFFFFF", "100000000/0"]);
            add("form", &["5000060", "0/", "/0", "0/G", "0x1/0x2", "-1/0"]);
        }
        Meaning::Xid => {
            add("zero", &["0", "1", "2"]);
            add("huge", &["4294967296", "18446744073709551615", "99999999999999999999"]);
            add("form", &["-1", "1.5", "0x10", "seven"]);
        }
        Meaning::Name(other) => {
            add("existing", &[other]);
            add("missing", &["nowhere"]);
            add("foreign", &["lab/main", "main.other"]);
        }
        Meaning::Text => add_special(path, &mut add),
    }
    let fitting = if general == most { nonsense() } else { nonsense().into_iter().take(general).collect() };
    all.extend(fitting.into_iter().take(most));
    all
}

/// What is wrong only in one sort of field.
fn add_special(path: &str, add: &mut impl FnMut(&'static str, &[&str])) {
    const DIGEST: &str =
        "registry.example/postgres@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let name = path.rsplit('.').next().unwrap_or_default();
    match name {
        "version" => add("other", &["15", "18", "9.6", "17.6", "17 ", "017", "v17", "19"]),
        "image" => {
            add("missing", &["registry.example/nowhere:1", "localhost:1/a:b"]);
            add("other", &[DIGEST, "postgres", "postgres:latest"]);
            add(
                "form",
                &[
                    "postgres:17:6",
                    "postgres@sha256:12",
                    "Registry.example/Postgres:17",
                    "a//b",
                    "https://a/b",
                ],
            );
        }
        "storageClassName" => add("missing", &["nowhere", "Fast SSD"]),
        "database" | "owner" => add(
            "taken",
            &[
                "postgres",
                "template1",
                "pg_signal_backend",
                "holdfast_replication",
                "select",
                "user",
                "public",
                "none",
            ],
        ),
        "encoding" => add("foreign", &["LATIN1", "utf-8", "SQL_ASCII", "EBCDIC"]),
        "locale" => add("foreign", &["de_DE.UTF-8", "xx_YY", "C", "POSIX"]),
        "max_connections" => add("number", &["0", "-1", "1", "262144", "ten", "100 ", "1e2"]),
        "shared_buffers" => add("amount", &["16kB", "1000TB", "-1", "25%", "128mb", "128 MB"]),
        "work_mem" => add("amount", &["63kB", "8MB\\n", "'8MB'", "8MB # more"]),
        "operator" => add("foreign", &["Exists", "Equal", "In", "exists"]),
        "effect" => add("foreign", &["NoSchedule", "NoExecute", "Never", "noschedule"]),
        "endpoint" => add(
            "url",
            &[
                "s3.example",
                "ftp://s3.example",
                "http://",
                "https://user:pass@s3.example",
                "http://s3.example:99999",
                "http://[::1",
            ],
        ),
        "prefix" => add("path", &["/a", "a/", "a//b", "a b", ".", "a/./b"]),
        "path" => add("path", &["/", "/sub", "sub", "/a/../b", "//", "/a//b", "/dev/null"]),
        "bucket" => add("form", &["AB", "a_b", "192.168.0.1", "a/b", "bucket?x=1"]),
        "region" => add("form", &["eu west", "mars-1"]),
        "namespace" => add("other", &["default", "kube-system", "Lab"]),
        "systemIdentifier" => add("number", &["0", "-1", "18446744073709551616", "abc"]),
        "sql" => add(
            "sql",
            &["drop table orders", "select pg_sleep(100000)", "select 1; select 2", "\\copy a from b", "-- "],
        ),
        _ if path.ends_with("pgHba[0]") => add(
            "line",
            &["garbage", "local all all trust", "host all all 0.0.0.0/0 md5", "# only a remark", "include x"],
        ),
        _ if path.contains(".labels.") || path.ends_with(".disktype") => {
            add("label", &["a b", "a/b", ".a", "a.", "A_b-1.c"])
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_known_by_their_names() {
        assert_eq!(meaning("spec.storage.size"), Meaning::Quantity);
        assert_eq!(meaning("spec.newDatabase.overrides.resources.limits.cpu"), Meaning::Quantity);
        assert_eq!(meaning("spec.archive.storeRef.name"), Meaning::Name("other"));
        assert_eq!(meaning("spec.newDatabase.name"), Meaning::Name("orders"));
        assert_eq!(meaning("spec.pointInTime.name"), Meaning::Text);
        assert_eq!(sample("spec.source.database.storeRef.name"), "main");
    }

    #[test]
    fn every_text_has_its_word_and_is_there_once() {
        for path in ["spec.schedule", "spec.storage.size", "spec.image", "spec.databaseRef.name", "spec.x"] {
            let all = hostile(path, usize::MAX);
            let mut texts: Vec<&String> = all.iter().map(|(_, text)| text).collect();
            texts.sort();
            texts.dedup();
            assert_eq!(texts.len(), all.len(), "{path}");
            assert!(all.iter().all(|(word, _)| !word.is_empty() && !word.contains(' ')), "{path}");
        }
    }
}
