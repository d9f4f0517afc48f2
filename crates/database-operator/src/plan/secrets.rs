//! Contents of the Secrets: passwords and the own certificate authority. Draws random numbers, touches nothing else.
//!
//! The operator cannot read a Secret, so it only ever makes what is not there. Certificates live for ten years: they are not
//! renewed yet, which is a matter for a Job that mounts the CA.

use crate::{plan::children, validate::ValidatedDatabase};
use holdfast_core::names;
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::collections::BTreeMap;

/// Characters of passwords: safe in URIs, in pgpass files and in connection strings without any quoting.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// Length of passwords: 190 bits.
const LENGTH: usize = 32;
/// How long certificates live, years.
const YEARS: i16 = 10;
/// The DNS domain that nearly every cluster has; only the `fqdn-` keys need one.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Why a Secret could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No randomness.
    #[error("the system gave no random numbers: {0}")]
    Random(getrandom::Error),
    /// No certificate.
    #[error("cannot make the certificate")]
    Certificate(#[from] rcgen::Error),
    /// Others make and delete the same Secrets at the same time.
    #[error("the Secrets of the certificate are made and deleted by somebody else at the same time")]
    Contested,
}

/// A random password. Errors: the system gives no random numbers.
pub fn password() -> Result<String, SecretError> {
    let mut text = String::with_capacity(LENGTH);
    while text.len() < LENGTH {
        let mut bytes = [0_u8; 64];
        getrandom::fill(&mut bytes).map_err(SecretError::Random)?;
        // 248 is the largest multiple of 62 in a byte: beyond it some characters would come more often than others.
        let fair =
            bytes.iter().filter(|b| **b < 248).filter_map(|b| ALPHABET.get(usize::from(*b) % ALPHABET.len()));
        text.extend(fair.map(|b| char::from(*b)).take(LENGTH - text.len()));
    }
    Ok(text)
}

fn secret(db: &ValidatedDatabase, name: String, type_: &str, data: BTreeMap<String, String>) -> Secret {
    Secret {
        metadata: children::meta(db, name),
        type_: Some(type_.into()),
        data: Some(data.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()),
        ..Secret::default()
    }
}

fn entries<const N: usize>(list: [(&str, String); N]) -> BTreeMap<String, String> {
    list.map(|(k, v)| (k.to_string(), v)).into()
}

/// Secret `<name>-app`: what an application needs to connect, under CloudNativePG's keys and servicebinding.io's.
pub fn app(db: &ValidatedDatabase, password: &str) -> Secret {
    let name = db.name.as_str();
    let user = &db.spec.postgresql.owner;
    let dbname = &db.spec.postgresql.database;
    let host = names::rw_host(name, &db.namespace);
    let full = format!("{host}.{CLUSTER_DOMAIN}");
    let port = names::PORT_POSTGRESQL;
    let uri = |host: &str| format!("postgresql://{user}:{password}@{host}:{port}/{dbname}");
    let jdbc =
        |host: &str| format!("jdbc:postgresql://{host}:{port}/{dbname}?password={password}&user={user}");
    let data = entries([
        ("username", user.clone()),
        ("user", user.clone()),
        ("password", password.into()),
        ("dbname", dbname.clone()),
        ("host", host.clone()),
        ("port", port.to_string()),
        ("uri", uri(&host)),
        ("jdbc-uri", jdbc(&host)),
        ("fqdn-uri", uri(&full)),
        ("fqdn-jdbc-uri", jdbc(&full)),
        ("pgpass", format!("{host}:{port}:{dbname}:{user}:{password}\n")),
        // servicebinding.io
        ("type", "postgresql".into()),
        ("provider", "holdfast".into()),
        ("database", dbname.clone()),
    ]);
    secret(db, names::secret_app(name), "kubernetes.io/basic-auth", data)
}

/// A Secret with a role and its password.
fn role(db: &ValidatedDatabase, name: String, role: &str, password: &str) -> Secret {
    let data = entries([("username", role.into()), ("password", password.into())]);
    secret(db, name, "kubernetes.io/basic-auth", data)
}

/// Secret `<name>-replication`.
pub fn replication(db: &ValidatedDatabase, password: &str) -> Secret {
    role(db, names::secret_replication(db.name.as_str()), names::REPLICATION_ROLE, password)
}

/// Secret `<name>-superuser`.
pub fn superuser(db: &ValidatedDatabase, password: &str) -> Secret {
    role(db, names::secret_superuser(db.name.as_str()), "postgres", password)
}

/// The Secrets `<name>-ca` and `<name>-tls`, which belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificates {
    /// The certificate authority: ca.crt, ca.key.
    pub ca: Secret,
    /// The instances' certificate, for servers and clients: tls.crt, tls.key, ca.crt.
    pub tls: Secret,
}

/// Makes a certificate authority (ECDSA P-256) and a certificate of it for all instances. Errors: no randomness.
pub fn certificates(db: &ValidatedDatabase, now: Timestamp) -> Result<Certificates, SecretError> {
    let name = db.name.as_str();
    let today = now.to_zoned(k8s_openapi::jiff::tz::TimeZone::UTC).date();
    // From the first of January on: clocks of nodes may be behind this one.
    let from = date_time_ymd(i32::from(today.year()) - 1, 1, 1);
    let to = date_time_ymd(i32::from(today.year() + YEARS), 12, 31);

    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name = common_name(&format!("{} {name} CA", db.namespace));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (ca.not_before, ca.not_after) = (from, to);
    let ca_pem = ca.self_signed(&ca_key)?.pem();

    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names::certificate_names(name, &db.namespace))?;
    leaf.distinguished_name = common_name(name);
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    (leaf.not_before, leaf.not_after) = (from, to);
    let leaf_pem = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key))?.pem();

    let tls = entries([("tls.crt", leaf_pem), ("tls.key", key.serialize_pem()), ("ca.crt", ca_pem.clone())]);
    let authority = entries([("ca.crt", ca_pem), ("ca.key", ca_key.serialize_pem())]);
    Ok(Certificates {
        ca: secret(db, names::secret_ca(name), "Opaque", authority),
        tls: secret(db, names::secret_tls(name), "kubernetes.io/tls", tls),
    })
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // A common name holds at most 64 characters; clients look at the alternative names only.
    name.push(DnType::CommonName, text.chars().take(64).collect::<String>());
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::valid;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
        server::WebPkiClientVerifier,
    };
    use std::{sync::Arc, time::Duration};

    fn text(secret: &Secret, key: &str) -> String {
        String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
    }

    #[test]
    fn passwords_need_no_quoting_and_differ() {
        let (a, b) = (password().unwrap(), password().unwrap());
        assert_ne!(a, b);
        assert!(a.len() == LENGTH && a.chars().all(|c| c.is_ascii_alphanumeric()));
    }

    #[test]
    fn the_application_finds_every_key_that_it_may_know() {
        let secret = app(&valid(""), "s3cret");
        let keys: Vec<_> = secret.data.as_ref().unwrap().keys().map(String::as_str).collect();
        for key in [
            "username",
            "user",
            "password",
            "dbname",
            "host",
            "port",
            "uri",
            "jdbc-uri",
            "fqdn-uri",
            "fqdn-jdbc-uri",
            "pgpass",
            "type",
            "provider",
            "database",
        ] {
            assert!(keys.contains(&key), "{key}");
        }
        assert_eq!(text(&secret, "uri"), "postgresql://app:s3cret@orders-rw.shop.svc:5432/app");
        assert_eq!(text(&secret, "pgpass"), "orders-rw.shop.svc:5432:app:app:s3cret\n");
    }

    #[test]
    fn the_certificate_is_good_for_servers_and_clients_of_this_database_only() {
        let now: Timestamp = "2026-11-21T09:00:00Z".parse().unwrap();
        let made = certificates(&valid(""), now).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(text(&made.tls, "ca.crt").as_bytes()).unwrap()).unwrap();
        assert_eq!(text(&made.ca, "ca.crt"), text(&made.tls, "ca.crt"));
        let roots = Arc::new(roots);
        let leaf = CertificateDer::from_pem_slice(text(&made.tls, "tls.crt").as_bytes()).unwrap();
        PrivateKeyDer::from_pem_slice(text(&made.tls, "tls.key").as_bytes()).unwrap();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        let servers =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let check = |name: &str, time| {
            servers.verify_server_cert(
                &leaf,
                &[],
                &ServerName::try_from(name.to_string()).unwrap(),
                &[],
                time,
            )
        };
        for name in ["orders-rw", "orders-rw.shop.svc", "orders-0.orders-pods.shop.svc", "localhost"] {
            check(name, time).unwrap();
        }
        check("carts-rw.shop.svc", time).unwrap_err();
        check("orders-rw", UnixTime::since_unix_epoch(Duration::from_secs(2_200_000_000))).unwrap_err();
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
        clients.verify_client_cert(&leaf, &[], time).unwrap();
    }
}
