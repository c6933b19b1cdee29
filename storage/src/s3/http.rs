//! The HTTP client below the SDK: certificates, proxies from the environment, idle connections.

use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::config::S3Config;
use super::trust;
use crate::{Error, Result};

/// Servers close idle connections; one that was not used for this long is not used again.
const IDLE: Duration = Duration::from_secs(20);

/// A client for the endpoint of `config`. `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` apply.
pub(super) fn client(config: &S3Config) -> Result<SharedHttpClient> {
    if config.insecure {
        return trust::everything();
    }
    if let (Some(pem), Some(server)) = (&config.ca_cert, server(config)) {
        let own = certificates(pem)?;
        if own
            .iter()
            .any(|certificate| trust::is_of(certificate, server))
        {
            return trust::these(own);
        }
    }
    let plain = [&config.endpoint, &config.public_url].into_iter().flatten();
    let plain = config.endpoint.is_some() && plain.into_iter().all(|url| url.starts_with("http:"));
    let tls = if plain {
        None
    } else {
        Some(tls(config.ca_cert.as_deref())?)
    };
    Ok(Builder::new().build_with_connector_fn(move |settings, _| {
        let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_pool_idle_timeout(Some(Some(IDLE)));
        match &tls {
            None => connector.build_http(),
            Some(context) => connector
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .tls_context(context.clone())
                .build(),
        }
    }))
}

/// The host that requests go to over TLS.
fn server(config: &S3Config) -> Option<&str> {
    let rest = config.endpoint.as_deref()?.strip_prefix("https://")?;
    let authority = rest.split(['/', '?']).next()?;
    Some(match authority.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => authority.split(':').next()?,
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let refuse = |message: String| Error::config("caCert", message);
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| refuse(format!("no PEM certificates: {error}")))?;
    if certificates.is_empty() {
        return Err(refuse("holds no PEM certificate".to_owned()));
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|error| refuse(format!("a certificate in it is not usable: {error}")))?;
    }
    Ok(certificates)
}

/// The system's certificates and those of `ca_cert`, which are checked here: the SDK panics on one
/// that cannot be read.
fn tls(ca_cert: Option<&[u8]>) -> Result<TlsContext> {
    let mut store = TrustStore::default();
    if let Some(pem) = ca_cert {
        certificates(pem)?;
        store.add_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(store).build();
    context.map_err(|error| Error::config("caCert", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_an_endpoint_is_known() {
        for (endpoint, expected) in [
            ("https://minio.example.com:9000", Some("minio.example.com")),
            ("https://10.0.0.1/", Some("10.0.0.1")),
            ("https://[fd00::1]:9000", Some("fd00::1")),
            ("http://minio.example.com", None),
        ] {
            let config = S3Config {
                endpoint: Some(endpoint.to_owned()),
                ..S3Config::new("b")
            };
            assert_eq!(server(&config), expected, "{endpoint}");
        }
    }

    #[test]
    fn a_ca_certificate_that_is_none_is_refused_without_a_panic() {
        for pem in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        ] {
            let error = tls(Some(pem.as_bytes())).unwrap_err();
            assert!(error.to_string().starts_with("caCert: "), "{error}");
        }
    }
}
