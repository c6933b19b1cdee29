//! The cluster that the user's kubeconfig, or the pod's service account, names.

use kube::Client;

use crate::exit::{Exit, chain};

/// A client of that cluster.
pub(crate) async fn client() -> Result<Client, Exit> {
    // The only place of this program that speaks TLS through kube; S3 has its own set-up.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = Client::try_default().await;
    client.map_err(|error| Exit::failed(chain(&error)))
}
