//! The password of the repositories (design: "Data on disk and in the bucket").
//!
//! An existing Secret is used as it is. A missing one is made, with 256 random bits, only while no location holds a repository: a new
//! password beside old repositories would make every one of them unreadable to whoever trusts the Secret. A location that could not be
//! read then may hold some all the same: it is not used while the password that was made opens none of them.

use std::{collections::BTreeMap, sync::Arc};

use jackline_crds::names::{
    REPOSITORY_PASSWORD_KEY, REPOSITORY_SECRET, annotation::PASSWORD_MADE, short_hash,
};
use jackline_repository::{Error, OpenOptions, Password, Repository};
use jackline_runtime::secrets::{ReadError, read_secret_key};
use jackline_storage::{ObjectStore, Scoped, layout::restic_directory};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::open::LocationError;

/// How many repositories are tried: each of their keys takes a tenth of a second and tens of MiB.
const TRIED: usize = 8;

/// Reads the password.
///
/// # Errors
/// When the Secret or its key is missing, or cannot be read, or is not text.
pub async fn read(client: &Client, namespace: &str) -> Result<Password, LocationError> {
    let (name, key) = (REPOSITORY_SECRET, REPOSITORY_PASSWORD_KEY);
    let bytes = read_secret_key(client, namespace, name, key).await?;
    let text = String::from_utf8(bytes).map_err(|_| LocationError::NotText {
        name: name.into(),
        key: key.into(),
    })?;
    // As restic reads a password file: what `echo` wrote has a line end.
    Ok(Password::new(text.trim()))
}

/// What is known about the password of a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordState {
    /// There is one.
    Present,
    /// There is none, and nothing yet that one was used for.
    MayBeMade,
    /// There is none, but these repositories were made with one.
    Lost(String),
}

/// Looks whether the password exists, and if not, whether `store` holds repositories.
///
/// # Errors
/// When the API server or the store does not answer.
pub async fn state(
    client: &Client,
    namespace: &str,
    store: &dyn ObjectStore,
) -> Result<PasswordState, LocationError> {
    let why = match read(client, namespace).await {
        Ok(_) => return Ok(PasswordState::Present),
        Err(LocationError::Secret(error)) if error.is_absent() => error,
        Err(error) => return Err(error),
    };
    let found = repositories(store).await?;
    // A Secret that exists is never changed: only its owner knows what it is for.
    if matches!(why, ReadError::Missing { .. }) && found.is_empty() {
        return Ok(PasswordState::MayBeMade);
    }
    let held = match found.len() {
        0 => String::new(),
        _ => format!(", and the location holds {}", named(&found)),
    };
    Ok(PasswordState::Lost(format!(
        "{why}{held}: put the password that the repositories were made with into key \
         {REPOSITORY_PASSWORD_KEY} of Secret {namespace}/{REPOSITORY_SECRET}; a new one is not made"
    )))
}

fn named(repositories: &[String]) -> String {
    let shown = repositories.iter().take(3).cloned();
    let shown = shown.collect::<Vec<_>>().join(", ");
    match repositories.len() {
        0..=3 => format!("repositories ({shown})"),
        more => format!("{more} repositories ({shown}, …)"),
    }
}

/// Whether the password is the one for a location's repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// Nothing speaks against it.
    Unknown,
    /// It opens one.
    Opens,
    /// It was made here, and opens none.
    Foreign(String),
}

/// Tries a password that was made here at the repositories of a location. What a person has put into the Secret is not questioned.
///
/// # Errors
/// When the API server or the store does not answer.
pub async fn fit(
    client: &Client,
    namespace: &str,
    store: &Arc<dyn ObjectStore>,
) -> Result<Fit, LocationError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let secret = api.get_opt(REPOSITORY_SECRET).await;
    let secret = secret.map_err(|source| ReadError::Api {
        kind: "Secret",
        namespace: namespace.to_owned(),
        name: REPOSITORY_SECRET.to_owned(),
        source,
    })?;
    let Some(password) = secret.and_then(|secret| made(&secret)) else {
        return Ok(Fit::Unknown);
    };
    let found = repositories(&**store).await?;
    Ok(
        match tried(store, &found, Password::new(&password)).await? {
            Fit::Foreign(which) => Fit::Foreign(format!(
                "the location holds {which}, and the password in Secret {namespace}/{REPOSITORY_SECRET}, which was made when no repository \
             was known, opens none of them: put the one that they were made with into its key {REPOSITORY_PASSWORD_KEY} (and keep the \
             other, if it has been used since); if they are none of this cluster's, take the annotation {PASSWORD_MADE} off the Secret"
            )),
            known => known,
        },
    )
}

/// The password of a Secret, if it is still the one that was made here.
fn made(secret: &Secret) -> Option<String> {
    let noted = secret.metadata.annotations.as_ref()?.get(PASSWORD_MADE)?;
    let password = &secret.data.as_ref()?.get(REPOSITORY_PASSWORD_KEY)?.0;
    let password = std::str::from_utf8(password).ok()?;
    (short_hash(password, 64) == *noted).then(|| password.to_owned())
}

async fn tried(
    store: &Arc<dyn ObjectStore>,
    namespaces: &[String],
    password: Password,
) -> Result<Fit, LocationError> {
    let options = OpenOptions::new(password);
    let mut refused = false;
    for namespace in namespaces.iter().take(TRIED) {
        let store = Scoped::new(store.clone(), &restic_directory(namespace));
        match Repository::open(Arc::new(store), &options).await {
            Ok(_) => return Ok(Fit::Opens),
            Err(Error::WrongPassword { .. }) => refused = true,
            Err(Error::Storage(error)) => return Err(error.into()),
            // Parts of one, or a damaged one: they say nothing about the password.
            Err(_) => {}
        }
    }
    // Where there are more, those that others have made may come first.
    Ok(match refused && namespaces.len() <= TRIED {
        true => Fit::Foreign(named(namespaces)),
        false => Fit::Unknown,
    })
}

/// The namespaces whose repositories a location holds.
///
/// # Errors
/// When the store does not answer.
pub async fn repositories(store: &dyn ObjectStore) -> Result<Vec<String>, LocationError> {
    let listing = store.list_level("restic").await?;
    let names = listing.prefixes.iter().filter_map(|prefix| {
        let name = prefix.strip_prefix("restic/")?.trim_end_matches('/');
        (!name.is_empty()).then(|| name.to_owned())
    });
    Ok(names.collect())
}

/// Makes the Secret with a new password. Whoever made one in the meantime wins.
///
/// # Errors
/// When the API server does not take it.
pub async fn make(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let bits: [u8; 32] = rand::random();
    let password = hex::encode(bits);
    let noted = (PASSWORD_MADE.to_owned(), short_hash(&password, 64));
    let data = BTreeMap::from([(
        REPOSITORY_PASSWORD_KEY.to_owned(),
        ByteString(password.into_bytes()),
    )]);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(REPOSITORY_SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(
                "component".to_owned(),
                "velero".to_owned(),
            )])),
            annotations: Some([noted].into()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::warn!(
                secret = %format!("{namespace}/{REPOSITORY_SECRET}"),
                "made a password for the repositories: keep a copy outside this cluster, without it the backups cannot be read"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use jackline_storage::memory::MemoryStore;

    use super::*;

    #[test]
    fn a_password_that_a_person_has_put_in_was_not_made_here() {
        let secret = |noted: Option<&str>, password: &str| {
            let bytes = ByteString(password.as_bytes().to_vec());
            let mut secret = Secret {
                data: Some([(REPOSITORY_PASSWORD_KEY.to_owned(), bytes)].into()),
                ..Secret::default()
            };
            let noted = noted.map(|of| (PASSWORD_MADE.to_owned(), short_hash(of, 64)));
            secret.metadata.annotations = Some(noted.into_iter().collect());
            made(&secret)
        };
        assert_eq!(secret(Some("a"), "a").as_deref(), Some("a"));
        assert_eq!(secret(Some("a"), "b"), None);
        assert_eq!(secret(None, "a"), None);
        assert_eq!(made(&Secret::default()), None);
    }

    #[tokio::test]
    async fn a_password_is_foreign_where_it_opens_no_repository() {
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let init = async |namespace: &str, password: &str| {
            let at = Scoped::new(store.clone(), &restic_directory(namespace));
            let options = OpenOptions::new(Password::new(password));
            Repository::init(Arc::new(at), &options).await.unwrap();
        };
        let fit = async || {
            let found = repositories(&*store).await.unwrap();
            tried(&store, &found, Password::new("ours")).await.unwrap()
        };
        assert_eq!(fit().await, Fit::Unknown);
        // What is left of a repository tells nothing.
        store.put("restic/gone/data/x", "x".into()).await.unwrap();
        assert_eq!(fit().await, Fit::Unknown);
        init("shop", "theirs").await;
        let which = "repositories (gone, shop)".to_owned();
        assert_eq!(fit().await, Fit::Foreign(which));
        init("till", "ours").await;
        assert_eq!(fit().await, Fit::Opens);
        for other in 0..TRIED {
            init(&format!("a-{other}"), "theirs").await;
        }
        assert_eq!(fit().await, Fit::Unknown);
    }
}
