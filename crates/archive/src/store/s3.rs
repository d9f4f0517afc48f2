//! S3 and servers that speak it. Touches the network and the mounted credentials.
//!
//! TLS trusts Mozilla's roots, which are compiled in, and the CA of `spec.s3.caSecretRef`: neither the agent's own image nor a
//! database's image needs to have a trust store.

use super::StoreError;
use async_trait::async_trait;
use holdfast_core::{crd::store::S3Store, wire};
use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, CredentialProvider, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AwsCredential},
    client::{HttpClient, HttpConnector},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{path::Path, sync::Arc, time::Duration};

/// Longest silence of the server inside one request; the body of a request counts, so it bounds the slowest link that still works:
/// 8 MiB in a minute.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(5);

pub(super) async fn open(spec: &S3Store, patient: bool) -> Result<AmazonS3, StoreError> {
    let own_ca = match &spec.ca_secret_ref {
        Some(_) => Some(read_ca(Path::new(wire::STORE_CA_FOLDER)).await?),
        None => None,
    };
    let connector = Connector { tls: tls(own_ca.as_deref())? };
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(if patient { 15 } else { 5 }),
            base: 2.0,
        },
        max_retries: if patient { 20 } else { 4 },
        retry_timeout: Duration::from_secs(if patient { 180 } else { 20 }),
    };
    // The pod's own identity is found in the environment (a projected token, for instance); with a Secret nothing from there counts.
    let builder = match &spec.credentials_secret_ref {
        None => AmazonS3Builder::from_env(),
        Some(_) => {
            let files = Files { folder: wire::STORE_CREDENTIALS_FOLDER.into() };
            files.read().await?;
            AmazonS3Builder::new().with_credentials(Arc::new(files))
        }
    };
    let mut builder = builder
        .with_bucket_name(&spec.bucket)
        .with_region(if spec.region.is_empty() { "us-east-1" } else { &spec.region })
        .with_virtual_hosted_style_request(!spec.force_path_style)
        .with_http_connector(connector)
        .with_retry(retry)
        // One request an object: not every server has the call that deletes many at once.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &spec.endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(address(
            endpoint,
            &spec.bucket,
            spec.force_path_style,
        ));
    }
    builder.build().map_err(|e| StoreError { reason: "InvalidStore", permanent: true, ..StoreError::of(e) })
}

/// With virtual hosts the client wants the bucket in the endpoint's host name, while people write the server's address.
fn address(endpoint: &str, bucket: &str, path_style: bool) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if !path_style && !host.starts_with(&format!("{bucket}.")) => {
            format!("{scheme}://{bucket}.{host}")
        }
        _ => endpoint.to_string(),
    }
}

/// Reads the mounted Secret for each request, so that a rotated one is used at once.
#[derive(Debug)]
struct Files {
    folder: std::path::PathBuf,
}

impl Files {
    async fn read(&self) -> Result<AwsCredential, StoreError> {
        let file = async |name: &str| match tokio::fs::read_to_string(self.folder.join(name)).await {
            Ok(text) => Ok(Some(text.trim().to_string()).filter(|t| !t.is_empty())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::file(&self.folder.join(name), &e)),
        };
        let missing = |key: &str| {
            let message = format!("the Secret of spec.s3.credentialsSecretRef has no key {key}");
            StoreError::new("CredentialsMissing", message, true)
        };
        Ok(AwsCredential {
            key_id: file("accessKeyId").await?.ok_or_else(|| missing("accessKeyId"))?,
            secret_key: file("secretAccessKey").await?.ok_or_else(|| missing("secretAccessKey"))?,
            token: file("sessionToken").await?,
        })
    }
}

#[async_trait]
impl CredentialProvider for Files {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.read()
            .await
            .map(Arc::new)
            .map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })
    }
}

async fn read_ca(folder: &Path) -> Result<Vec<u8>, StoreError> {
    let file = folder.join("ca.crt");
    tokio::fs::read(&file).await.map_err(|e| {
        let message = format!("the Secret of spec.s3.caSecretRef: {}: {e}", file.display());
        StoreError::new("InvalidCa", message, true)
    })
}

fn tls(own_ca: Option<&[u8]>) -> Result<rustls::ClientConfig, StoreError> {
    let invalid =
        |e: String| StoreError::new("InvalidCa", format!("ca.crt of spec.s3.caSecretRef: {e}"), true);
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(pem) = own_ca {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots
                .add(certificate.map_err(|e| invalid(e.to_string()))?)
                .map_err(|e| invalid(e.to_string()))?;
        }
        if roots.len() == before {
            return Err(invalid("no certificate in it".into()));
        }
    }
    // The provider is named here, so that nothing depends on what the process installed as its default.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| StoreError::new("InvalidStore", e.to_string(), true))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Makes HTTP clients with our own trust and deadlines.
#[derive(Debug)]
struct Connector {
    tls: rustls::ClientConfig,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The metadata service of a cloud asks for a shorter time to connect: elsewhere nobody answers at its address.
        let asked = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let connect = if asked.as_deref() == Some("1s") { Duration::from_secs(1) } else { CONNECT };
        reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .http1_only()
            .connect_timeout(connect)
            .read_timeout(SILENCE)
            .tcp_keepalive(Duration::from_secs(15))
            .user_agent("holdfast")
            .build()
            .map(HttpClient::new)
            .map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_is_where_the_style_wants_it() {
        assert_eq!(address("http://s3.local:9000/", "b", true), "http://s3.local:9000");
        assert_eq!(address("https://s3.local", "b", false), "https://b.s3.local");
        assert_eq!(address("https://b.s3.local", "b", false), "https://b.s3.local");
    }

    #[tokio::test]
    async fn credentials_are_read_anew_each_time_and_a_missing_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files { folder: folder.path().into() };
        std::fs::write(folder.path().join("accessKeyId"), "one\n").unwrap();
        let error = files.read().await.unwrap_err();
        assert_eq!(error.reason, "CredentialsMissing");
        assert!(error.message.contains("secretAccessKey"));
        std::fs::write(folder.path().join("secretAccessKey"), "s").unwrap();
        assert_eq!(files.get_credential().await.unwrap().key_id, "one");
        std::fs::write(folder.path().join("accessKeyId"), "two").unwrap();
        assert_eq!(files.get_credential().await.unwrap().key_id, "two");
    }

    #[test]
    fn trusts_mozillas_roots_and_refuses_a_file_that_is_no_certificate() {
        assert!(tls(None).is_ok());
        assert_eq!(tls(Some(b"nonsense")).unwrap_err().reason, "InvalidCa");
        let bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(tls(Some(bad)).unwrap_err().reason, "InvalidCa");
    }
}
