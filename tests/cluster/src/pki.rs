//! Certificates, keys and kubeconfigs. They are made anew for each cluster and live as long as it does.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::network::{API_SERVICE, NODE_ADDRESS};
use crate::place::Place;
use crate::site::Site;

/// Writes the files of `pki/`: an authority, the API server's certificate, client certificates, and the key that signs
/// service account tokens.
pub(crate) fn create(place: &Place, nodes: &[Site]) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut authority = params("jackline-test", None, &[])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    place.write("pki/ca.crt", authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);

    let names = [
        NODE_ADDRESS.to_string(),
        API_SERVICE.to_string(),
        "127.0.0.1".to_owned(),
        "localhost".to_owned(),
        "kubernetes.default.svc".to_owned(),
    ];
    let users: Vec<_> = nodes
        .iter()
        .map(|site| (site.user(), format!("system:node:{}", site.name)))
        .collect();
    let kubelets = users.iter().map(|(file, user)| {
        let none: &[String] = &[];
        (file.as_str(), user.as_str(), Some("system:nodes"), none)
    });
    let others = [
        ("apiserver", "kube-apiserver", None, names.as_slice()),
        (
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            Some("system:masters"),
            &[],
        ),
        ("admin", "admin", Some("system:masters"), &[]),
    ];
    for (file, user, group, names) in others.into_iter().chain(kubelets) {
        let key = KeyPair::generate()?;
        let certificate = params(user, group, names)?.signed_by(&key, &issuer)?;
        place.write(&format!("pki/{file}.crt"), certificate.pem())?;
        place.write(&format!("pki/{file}.key"), key.serialize_pem())?;
    }

    let tokens = KeyPair::generate()?;
    place.write("pki/tokens.key", tokens.serialize_pem())?;
    place.write("pki/tokens.pub", tokens.public_key_pem())?;
    Ok(())
}

fn params(user: &str, group: Option<&str>, names: &[String]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// Writes a kubeconfig that stands alone (its certificates are in it) for one of the users of [`create`].
pub(crate) fn kubeconfig(place: &Place, file: &str, user: &str, server: &str) -> Result<()> {
    let pem = |name: &str| -> Result<String> {
        let text = std::fs::read(place.path(&format!("pki/{name}")))?;
        Ok(STANDARD.encode(text))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "clusters": [{"name": "test", "cluster": {
            "server": server, "certificate-authority-data": pem("ca.crt")?,
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": pem(&format!("{user}.crt"))?,
            "client-key-data": pem(&format!("{user}.key"))?,
        }}],
    });
    place.write(file, serde_json::to_string_pretty(&config)?)?;
    Ok(())
}
