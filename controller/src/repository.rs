//! BackupRepository: one restic repository per namespace and location, made or opened, and kept in shape.
//!
//! Input: the object, its location, the password. Output: phase, message, `resticIdentifier`. Invariants: an existing repository is
//! never initialised again and never given another password; whoever needs one waits for `Ready` or gets the reason.

mod metrics;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jackline_crds::{
    GoDuration,
    names::{FIELD_MANAGER, REPOSITORY_SECRET, label, label_value, short_hash},
    velero::{
        BackupRepository, BackupRepositorySpec, BackupRepositoryStatus, BackupStorageLocation,
        RepositoryPhase, UploaderType,
    },
};
use jackline_holder::{ApiJudge, holder};
use jackline_policy::naming;
use jackline_repository::{OpenOptions, Repository};
use jackline_runtime::{
    Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, WatchEvent, WatchSpec,
    status::{Guard, StatusAt, write_status},
};
use jackline_storage::{Scoped, layout::restic_directory, restic_identifier};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    context::Context,
    location::{self, LocationError},
};

/// How often a repository is maintained when nobody says otherwise (Velero's default for restic).
pub const MAINTENANCE: GoDuration = GoDuration::from_hours(168);
/// How soon one that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How long whoever needs a repository waits for one that says no: it is tried again meanwhile.
const REFUSED: Duration = Duration::from_secs(120);
/// BackupRepositories that are made, or asked for, at once.
static REQUESTS: Semaphore = Semaphore::const_new(8);
/// How long forget waits for an exclusive lock to go away.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// Its location cannot be opened.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The repository itself says no.
    #[error(transparent)]
    Repository(#[from] jackline_repository::Error),
    /// The API server says no.
    #[error("BackupRepository {name} cannot be written")]
    Api {
        /// The object.
        name: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// It did not get ready in time.
    #[error("BackupRepository {name} is not ready: {message}")]
    NotReady {
        /// The object.
        name: String,
        /// What its status says.
        message: String,
    },
}

impl RepositoryError {
    /// Whether trying again may help without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Location(error) => error.is_retryable(),
            Self::Repository(error) => error.is_retryable(),
            Self::Api { .. } | Self::NotReady { .. } => true,
        }
    }
}

/// Names for the object of a namespace's repository in a location. Another pair may make the first one too: `a` in `b-c`, `a-b` in `c`.
fn names(namespace: &str, location: &str) -> [String; 2] {
    let plain = format!("{namespace}-{location}-restic");
    let hash = short_hash(&format!("{namespace}/{location}"), 10);
    [plain.clone(), format!("{plain}-{hash}")]
        .map(|full| naming::shorten(full.clone(), &full, naming::LONGEST_NAME))
}

/// The object of a namespace's repository, made if it is missing; waits until it is ready.
///
/// # Errors
/// When it cannot be made, or is not ready in time ([`Patience`]); says why.
pub async fn ensure(
    context: &Context,
    location: &BackupStorageLocation,
    namespace: &str,
) -> Result<Arc<BackupRepository>, RepositoryError> {
    let store = &context.stores.repositories;
    let mut name = ask(context, location, namespace).await?;
    let place = location.name_any();
    let ready = |repository: &BackupRepository| {
        repository.phase() == RepositoryPhase::Ready
            && repository.spec.backup_storage_location == place
    };
    let limit = context.args.resource_timeout.to_std();
    let patience = || Patience::new(limit, store.filter(ready).len(), Instant::now());
    let mut waits = patience();
    let mut was_there = false;
    let mut asked = None;
    loop {
        let change = store.next_change();
        let seen = store.get(&Key::namespaced(&context.namespace, &name));
        let mut gone = was_there && seen.is_none();
        was_there = seen.is_some();
        match seen.as_ref().map(|seen| (seen.phase(), seen)) {
            Some((RepositoryPhase::Ready, seen)) if asked != seen.resource_version() => {
                asked = seen.resource_version();
                match now(context, &name).await {
                    Ok(Some(now)) if ready(&now) => return Ok(Arc::new(now)),
                    // The watch tells of it soon.
                    Ok(Some(_)) => {}
                    Ok(None) => gone = true,
                    Err(error) => {
                        tracing::debug!(%error, name, "BackupRepository cannot be read");
                        return Ok(seen.clone());
                    }
                }
            }
            Some((RepositoryPhase::NotReady, _)) => waits.refused(Instant::now()),
            _ => {}
        }
        if gone {
            // Somebody wants it made anew.
            name = create(context, location, namespace).await?;
            waits = patience();
        }
        let until = waits.until;
        if tokio::time::timeout_at(until, change).await.is_err()
            && !waits.goes_on(store.filter(ready).len(), Instant::now())
        {
            break;
        }
    }
    let last = now(context, &name).await;
    let last = last.map_err(|source| RepositoryError::Api {
        name: name.clone(),
        source,
    })?;
    if let Some(last) = last.clone().filter(ready) {
        return Ok(Arc::new(last));
    }
    let message = last.and_then(|last| last.status?.message);
    Err(RepositoryError::NotReady {
        name,
        message: message.unwrap_or_else(|| "it was not looked at yet".to_owned()),
    })
}

/// A repository as the API server has it now: the watch may be behind its removal.
async fn now(context: &Context, name: &str) -> Result<Option<BackupRepository>, kube::Error> {
    // Never closed, so never an error.
    let _turn = REQUESTS.acquire().await;
    context.fetch(name).await
}

/// How long somebody waits for a repository. Many may be asked for at once: as long as others get ready, its turn comes.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    ready: usize,
    refused: bool,
    until: Instant,
}

impl Patience {
    /// `ready`: the repositories of the location that are ready now.
    fn new(limit: Duration, ready: usize, now: Instant) -> Self {
        Self {
            limit,
            ready,
            refused: false,
            until: now + limit,
        }
    }

    /// The one that is waited for was tried, in vain.
    fn refused(&mut self, now: Instant) {
        if !self.refused {
            self.refused = true;
            self.until = now + self.limit.min(REFUSED);
        }
    }

    /// Whether the wait goes on though its time is over: others got ready in it.
    fn goes_on(&mut self, ready: usize, now: Instant) -> bool {
        let moves = !self.refused && ready > self.ready;
        self.ready = self.ready.max(ready);
        self.until = now + self.limit;
        moves
    }
}

/// The name of the object of a namespace's repository, made if it is missing; does not wait until it is ready.
///
/// # Errors
/// When it cannot be made.
pub async fn ask(
    context: &Context,
    location: &BackupStorageLocation,
    namespace: &str,
) -> Result<String, RepositoryError> {
    match find(context, &location.name_any(), namespace) {
        Some(found) => Ok(found.name_any()),
        None => create(context, location, namespace).await,
    }
}

/// The object of a namespace's repository in a location.
fn find(context: &Context, location: &str, namespace: &str) -> Option<Arc<BackupRepository>> {
    let repositories = &context.stores.repositories;
    repositories.find(|repository| is_of(repository, location, namespace))
}

fn is_of(repository: &BackupRepository, location: &str, namespace: &str) -> bool {
    let spec = &repository.spec;
    spec.volume_namespace == namespace
        && spec.backup_storage_location == location
        && spec.repository_type != UploaderType::Kopia
}

/// Makes the object of a namespace's repository, where the watch knows of none.
///
/// # Errors
/// When it cannot be made.
pub async fn create(
    context: &Context,
    location: &BackupStorageLocation,
    namespace: &str,
) -> Result<String, RepositoryError> {
    // Never closed, so never an error.
    let _turn = REQUESTS.acquire().await;
    let location_name = location.name_any();
    let settings = location::settings(&context.clients.call, &context.namespace, location).await?;
    let identifier = restic_identifier(&settings, namespace).map_err(LocationError::from)?;
    let labels = BTreeMap::from([
        (label::VOLUME_NAMESPACE.to_owned(), label_value(namespace)),
        (
            label::STORAGE_LOCATION.to_owned(),
            label_value(&location_name),
        ),
        (label::REPOSITORY_TYPE.to_owned(), "restic".to_owned()),
    ]);
    let mut repository = BackupRepository {
        metadata: ObjectMeta {
            namespace: Some(context.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: BackupRepositorySpec {
            volume_namespace: namespace.to_owned(),
            backup_storage_location: location_name.clone(),
            repository_type: UploaderType::Restic,
            restic_identifier: Some(identifier),
            maintenance_frequency: MAINTENANCE,
            ..BackupRepositorySpec::default()
        },
        status: None,
    };
    let api = context.api::<BackupRepository>();
    let names = names(namespace, &location_name);
    for name in &names {
        let failed = |source| RepositoryError::Api {
            name: name.clone(),
            source,
        };
        repository.metadata.name = Some(name.clone());
        match api.create(&PostParams::default(), &repository).await {
            Ok(_) => return Ok(name.clone()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(source) => return Err(failed(source)),
        }
        let there = api.get_opt(name).await.map_err(failed)?;
        if there.is_none_or(|there| is_of(&there, &location_name, namespace)) {
            return Ok(name.clone());
        }
    }
    let [name, _] = names;
    let message = "another repository has its name".to_owned();
    Err(RepositoryError::NotReady { name, message })
}

/// Opens a namespace's repository.
///
/// # Errors
/// When the location, the password or the repository says no.
pub async fn open(
    context: &Context,
    location: &BackupStorageLocation,
    namespace: &str,
) -> Result<Repository, RepositoryError> {
    let store = location::open(&context.clients.call, &context.namespace, location).await?;
    let options = options(context).await?;
    Ok(Repository::open(
        Arc::new(Scoped::new(store, &restic_directory(namespace))),
        &options,
    )
    .await?)
}

async fn options(context: &Context) -> Result<OpenOptions, LocationError> {
    let password = location::read_password(&context.clients.call, &context.namespace).await?;
    let mut options = OpenOptions::new(password).with_lock_wait(LOCK_WAIT);
    let node = std::env::var("NODE_NAME").unwrap_or_default();
    options.holder = holder(&context.cluster_uid, &node, &context.namespace);
    options.judge = Arc::new(ApiJudge {
        client: context.clients.call.clone(),
        namespace: context.namespace.clone(),
        mine: options.holder.instance.clone(),
    });
    Ok(options)
}

/// Starts the controller.
///
/// # Errors
/// When its metrics cannot be registered.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> Result<(), prometheus::Error> {
    metrics::register(context, kit, lease)?;
    let queue = Queue::new("repositories");
    // Objects whose repository this process has opened with the password as it is now.
    let opened = Arc::new(Mutex::new(BTreeMap::<String, String>::new()));
    context
        .stores
        .repositories
        .enqueue(&queue, |change| vec![change.key.clone()]);
    {
        let (repositories, queue) = (context.stores.repositories.clone(), queue.clone());
        context.stores.locations.on_change(move |change| {
            let phase = |location: &Arc<BackupStorageLocation>| {
                location.status.as_ref().and_then(|status| status.phase)
            };
            let same = change
                .before
                .as_ref()
                .zip(change.after.as_ref())
                .is_some_and(|(before, after)| {
                    before.spec == after.spec && phase(before) == phase(after)
                });
            for repository in repositories.list() {
                if !same && repository.spec.backup_storage_location == change.key.name {
                    queue.add(Key::of(&*repository));
                }
            }
        });
    }
    {
        let (repositories, queue, opened) = (
            context.stores.repositories.clone(),
            queue.clone(),
            opened.clone(),
        );
        let spec = WatchSpec::new("repository-password")
            .namespace(&context.namespace)
            .fields(format!("metadata.name={REPOSITORY_SECRET}"));
        kit.watch_raw::<Secret>(spec, move |event| {
            if matches!(event, WatchEvent::Apply(_) | WatchEvent::Delete(_)) {
                opened.lock().clear();
                repositories
                    .keys()
                    .into_iter()
                    .for_each(|key| queue.add(key));
            }
        });
    }
    let context = context.clone();
    kit.run_leading(&queue, RunOptions::new(), lease, move |key, token| {
        let (context, opened) = (context.clone(), opened.clone());
        async move {
            context.alone().await?;
            pass(&context, &opened, &key, &token).await
        }
    });
    Ok(())
}

async fn pass(
    context: &Context,
    opened: &Mutex<BTreeMap<String, String>>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let Some(repository) = context.stores.repositories.get(key) else {
        opened.lock().remove(&key.name);
        return Ok(Next::Done);
    };
    if repository.spec.repository_type == UploaderType::Kopia {
        return Ok(Next::OnChange);
    }
    let location_key =
        Key::namespaced(&context.namespace, &repository.spec.backup_storage_location);
    context.stores.locations.ready().await;
    let Some(location) = context.stores.locations.get(&location_key) else {
        let message = format!("BackupStorageLocation {} does not exist", location_key.name);
        write(
            context,
            &repository,
            RepositoryPhase::NotReady,
            Some(message),
            token,
        )
        .await?;
        return Ok(Next::OnChange);
    };
    if location::usable(&location, false).is_err() {
        // The location's own status says why; it wakes this key when it can be used again.
        return Ok(Next::OnChange);
    }
    let known = opened.lock().get(&key.name).cloned();
    let wanted = fingerprint(&repository, &location);
    if repository.phase() == RepositoryPhase::Ready && known.as_ref() == Some(&wanted) {
        return Ok(Next::OnChange);
    }
    match connect(context, &repository, &location, token).await {
        Ok(()) => {
            write(context, &repository, RepositoryPhase::Ready, None, token).await?;
            opened.lock().insert(key.name.clone(), wanted);
            Ok(Next::OnChange)
        }
        Err(error) => {
            opened.lock().remove(&key.name);
            let message = location::chain(&error);
            tracing::warn!(repository = key.name, message, "repository is not ready");
            write(
                context,
                &repository,
                RepositoryPhase::NotReady,
                Some(message),
                token,
            )
            .await?;
            Ok(Next::After(RETRY))
        }
    }
}

fn fingerprint(repository: &BackupRepository, location: &BackupStorageLocation) -> String {
    let spec = serde_json::to_string(&location.spec).unwrap_or_default();
    format!(
        "{} {} {spec}",
        repository.uid().unwrap_or_default(),
        location.uid().unwrap_or_default()
    )
}

/// Has the repository where its location is, and notes where that is.
async fn connect(
    context: &Context,
    repository: &BackupRepository,
    location: &BackupStorageLocation,
    token: &LeaderToken,
) -> Result<(), RepositoryError> {
    let namespace = &repository.spec.volume_namespace;
    let settings = location::settings(&context.clients.call, &context.namespace, location).await?;
    let identifier = restic_identifier(&settings, namespace).map_err(LocationError::from)?;
    open_or_make(context, repository, location, token).await?;
    // Not before it is there: by this an agent that does not find it tells a location that was changed from a bucket that was emptied.
    if repository.spec.restic_identifier.as_deref() != Some(&identifier) {
        set_identifier(context, repository, &identifier).await?;
    }
    Ok(())
}

/// Opens the repository, or makes it where there is none.
async fn open_or_make(
    context: &Context,
    repository: &BackupRepository,
    location: &BackupStorageLocation,
    token: &LeaderToken,
) -> Result<(), RepositoryError> {
    let namespace = &repository.spec.volume_namespace;
    match open(context, location, namespace).await {
        Ok(_) => Ok(()),
        Err(RepositoryError::Repository(jackline_repository::Error::NotFound { .. }))
            if !location::read_only(location) && token.check().is_ok() =>
        {
            let store = location::open(&context.clients.call, &context.namespace, location).await?;
            let store = Arc::new(Scoped::new(store, &restic_directory(namespace)));
            let options = options(context).await?;
            match Repository::init(store, &options).await {
                Ok(_) => {
                    tracing::info!(repository = repository.name_any(), "made a repository");
                    Ok(())
                }
                // Somebody else was faster, or parts of one are there: what it is, opening says.
                Err(jackline_repository::Error::AlreadyExists { .. }) => {
                    open(context, location, namespace).await.map(|_| ())
                }
                Err(error) => Err(error.into()),
            }
        }
        Err(error) => Err(error),
    }
}

async fn set_identifier(
    context: &Context,
    repository: &BackupRepository,
    identifier: &str,
) -> Result<(), RepositoryError> {
    let api = context.api::<BackupRepository>();
    let name = repository.name_any();
    let patch = serde_json::json!({
        "metadata": {"uid": repository.metadata.uid},
        "spec": {"resticIdentifier": identifier}
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api.patch(&name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(source) => Err(RepositoryError::Api { name, source }),
    }
}

async fn write(
    context: &Context,
    repository: &BackupRepository,
    phase: RepositoryPhase,
    message: Option<String>,
    token: &LeaderToken,
) -> Result<(), Failure> {
    token.check()?;
    // The newest state: maintenance writes this status too.
    let key = Key::of(repository);
    let Some(newest) = context.stores.repositories.get(&key) else {
        return Ok(());
    };
    let old = newest.status.clone().unwrap_or_default();
    let status = BackupRepositoryStatus {
        phase: Some(phase),
        message,
        ..old
    };
    let api = context.api::<BackupRepository>();
    write_status(
        &api,
        &newest,
        &status,
        StatusAt::Main,
        Guard::SameObject,
        FIELD_MANAGER,
    )
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jackline_runtime::Store;
    use serde_json::json;

    use super::*;
    use crate::context::unwatched;

    const LIMIT: Duration = Duration::from_secs(600);

    #[test]
    fn a_repository_is_waited_for_as_long_as_others_get_ready() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::new(LIMIT, 3, began);
        assert_eq!(patience.until, after(600));
        assert!(patience.goes_on(4, after(600)));
        assert_eq!(patience.until, after(1200));
        // What others lose is no progress, nor is what they get back.
        assert!(!patience.goes_on(3, after(1200)));
        assert!(!patience.goes_on(4, after(1800)));
    }

    #[test]
    fn a_repository_that_says_no_is_not_waited_for_as_long() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::new(LIMIT, 0, began);
        patience.refused(after(200));
        patience.refused(after(300));
        assert_eq!(patience.until, after(320));
        assert!(!patience.goes_on(9, after(320)));
        let mut hasty = Patience::new(Duration::from_secs(5), 0, began);
        hasty.refused(began);
        assert_eq!(hasty.until, after(5));
    }

    fn repository(name: &str, uid: &str, phase: &str) -> serde_json::Value {
        json!({"metadata": {"name": name, "namespace": "velero", "uid": uid, "resourceVersion": uid},
            "spec": {"volumeNamespace": "shop", "backupStorageLocation": "here", "repositoryType": "restic",
                "resticIdentifier": uid, "maintenanceFrequency": "168h0m0s"},
            "status": {"phase": phase, "message": "broken"}})
    }

    /// What is had for namespace `shop`, where the watch knows the object `seen` and the API server these.
    async fn had(seen: serde_json::Value, there: &[(&str, serde_json::Value)]) -> String {
        let mut context = unwatched::context(there);
        let seen: BackupRepository = serde_json::from_value(seen).unwrap();
        Arc::get_mut(&mut context).unwrap().stores.repositories = Store::fixed([seen]);
        let location = serde_json::from_value(unwatched::location("here")).unwrap();
        match ensure(&context, &location, "shop").await {
            Ok(repository) => format!("{} {:?}", repository.name_any(), repository.uid()),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_repository_is_ready_when_the_api_server_says_so() {
        let path = unwatched::path("backuprepositories", "r");
        for (phase, expected) in [
            ("Ready", "r Some(\"2\")"),
            ("NotReady", "BackupRepository r is not ready: broken"),
        ] {
            let there = repository("r", "2", phase);
            let had = had(repository("r", "1", "Ready"), &[(&path, there)]).await;
            assert_eq!(had, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_repository_whose_removal_the_watch_has_not_told_of_is_made_anew() {
        let anew = "shop-here-restic";
        let there = repository(anew, "2", "Ready");
        let objects = [
            (unwatched::path("backuprepositories", anew), there.clone()),
            // To make one.
            (unwatched::all("backuprepositories"), there),
        ];
        let objects = objects.each_ref().map(|(path, it)| (&**path, it.clone()));
        let had = had(repository("r", "1", "Ready"), &objects).await;
        assert_eq!(had, format!("{anew} Some(\"2\")"));
    }

    #[test]
    fn a_name_is_never_too_long() {
        assert_eq!(names("shop", "default")[0], "shop-default-restic");
        let (a, b) = ("a".repeat(253), format!("{}b", "a".repeat(252)));
        let all = [names("shop", &a), names("shop", &b)].concat();
        assert!(all.iter().all(|name| name.len() == 253), "{all:?}");
        assert_eq!(BTreeSet::from_iter(&all).len(), 4);
    }

    #[test]
    fn repositories_whose_names_collide_have_others() {
        let ([one, other], [same, third]) = (names("a", "b-c"), names("a-b", "c"));
        assert_eq!(one, same);
        assert_ne!(other, third);
        let repository: BackupRepository = serde_json::from_value(serde_json::json!({
            "metadata": {"name": one},
            "spec": {"volumeNamespace": "a", "backupStorageLocation": "b-c", "repositoryType": "restic",
                "resticIdentifier": "", "maintenanceFrequency": "168h0m0s"}
        }))
        .unwrap();
        assert!(is_of(&repository, "b-c", "a"));
        assert!(!is_of(&repository, "c", "a-b"));
    }
}
