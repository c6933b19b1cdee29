//! One object of a backup: whether it is restored, what is changed on it, and what happens when it is there already.

use std::collections::BTreeSet;

use jackline_crds::names::{FIELD_MANAGER, RESTORE_WAIT_PROGRAM, annotation};
use jackline_policy::restore::{
    action, claim,
    conflict::{self, Conflict},
    json, mapping, meta, owners,
    skip::{pinned_node, skip},
    volume::claims_of_workload,
    wait,
};
use jackline_runtime::Failure;
use kube::core::ApiResource;
use serde_json::Value;

use super::{
    catalog::Item,
    cluster::Objects,
    report::{Done, Place},
    run::{Held, Run},
    served::ServedResource,
};
use crate::{agents, location::chain};

/// An object on its way back.
struct Prepared {
    /// As it is to be compared with what exists: no labels of a restore, no waiter.
    object: Value,
    /// `None` unless it is to be restored.
    status: Option<Value>,
    /// Who owned which of its fields, where the backup says.
    managers: Option<Value>,
    api: ApiResource,
    binding: Option<claim::Binding>,
    /// Storage classes that were put into it.
    classes: Vec<String>,
}

impl Prepared {
    /// In whose name it is made.
    fn maker(&self) -> &str {
        // A status is written by us: the owners have to be given back anyway, and who takes over sees that they have not been.
        let managers = self.managers.as_ref().filter(|_| self.status.is_none());
        managers.and_then(owners::sole).unwrap_or(FIELD_MANAGER)
    }
}

impl Run<'_> {
    /// Restores one object of the backup, if it is to be restored.
    ///
    /// # Errors
    /// When this process may not act any more; what is wrong with the object is in the report.
    pub async fn item(
        &self,
        kind: &str,
        resource: &ServedResource,
        item: &Item,
    ) -> Result<(), Failure> {
        self.token.check()?;
        let namespace = item.namespace.as_deref();
        if namespace.is_some_and(|namespace| !self.valid.scope.admits_namespace(namespace)) {
            return Ok(());
        }
        let place = Place::from(namespace.map(|namespace| self.target(namespace)));
        let unreadable = |why: String| {
            let why = format!("{kind} {} was not restored: {why}", item.name);
            self.report.error(place, &why);
        };
        let (room, object) = match self.catalog.open(item).await {
            Ok(opened) => opened,
            Err(why) => {
                unreadable(why);
                return Ok(());
            }
        };
        if object["kind"] != resource.api.kind.as_str()
            || resource.namespaced != namespace.is_some()
        {
            unreadable("it is not of the kind that its path in the tarball says".to_owned());
            return Ok(());
        }
        if !self.admits(kind, namespace, &object) {
            return Ok(());
        }
        if let Some(reason) = skip(kind, &object) {
            self.report
                .info(&format!("{kind} {} is not restored: {reason}", item.name));
            return Ok(());
        }
        if kind == "namespaces" {
            drop((room, object));
            self.namespace(&item.name).await?;
            return Ok(());
        }
        if !self.may_be_made(kind, resource, item, &object).await? {
            return Ok(());
        }
        if let Some(rival) = self.rival(kind, namespace, &item.name) {
            self.leave_to_rival(kind, resource, item, object, rival);
            return Ok(());
        }
        if let (Some(namespace), true) = (namespace, kind != "pods") {
            let claims = self.held_back(namespace);
            let claims = claims_of_workload(&object, &claims.iter().map(String::as_str).collect());
            if !claims.is_empty() {
                self.report.info(&format!(
                    "{kind} {namespace}/{} waits for the data of {claims:?}",
                    item.name
                ));
                let held = Held {
                    kind: kind.to_owned(),
                    item: item.clone(),
                    claims,
                };
                self.state.lock().held.push(held);
                return Ok(());
            }
        }
        let (_room, object) = match namespace {
            // It may be going for long: nobody waits for that with memory in hand.
            Some(namespace) if !self.knows_namespace(namespace) => {
                drop((room, object));
                self.namespace(namespace).await?;
                match self.catalog.open(item).await {
                    Ok(opened) => opened,
                    Err(why) => {
                        unreadable(why);
                        return Ok(());
                    }
                }
            }
            _ => (room, object),
        };
        self.put(kind, resource, item, object).await
    }

    /// Does not restore an object, for another namespace of the backup has one that goes before; says so where they differ.
    fn leave_to_rival(
        &self,
        kind: &str,
        resource: &ServedResource,
        item: &Item,
        mut object: Value,
        rival: &str,
    ) {
        let target = item
            .namespace
            .as_deref()
            .map(|namespace| self.target(namespace));
        let mut other = self
            .catalog
            .find(kind, Some(rival), &item.name)
            .unwrap_or_default();
        for object in [&mut object, &mut other] {
            self.strip(kind, object, None);
            meta::put_namespace(object, target.unwrap_or_default());
        }
        let object_kind = &resource.api.kind;
        let unset = conflict::ExistingPolicy::Unset;
        let done = match conflict::decide(kind, object_kind, &object, &other, unset) {
            Conflict::Same | Conflict::Patch(_) => Done::Skipped,
            Conflict::Leave(warning) => {
                let namespace = item.namespace.as_deref().unwrap_or_default();
                let why = format!(
                    "{warning}: that of namespace {rival} is restored, not that of {namespace}"
                );
                self.report.warning(Place::from(target), &why);
                Done::Failed
            }
        };
        let version = &resource.api.api_version;
        self.done(version, object_kind, target, &item.name, done);
    }

    /// The claims of a namespace whose workloads wait: those under restore, and those that are not made.
    fn held_back(&self, namespace: &str) -> BTreeSet<String> {
        let plan = self.plan();
        let claims = plan.claims(namespace).into_iter().map(str::to_owned);
        claims.chain(self.blocked_claims(namespace)).collect()
    }

    /// Rules of single kinds that need more than the object.
    async fn may_be_made(
        &self,
        kind: &str,
        resource: &ServedResource,
        item: &Item,
        object: &Value,
    ) -> Result<bool, Failure> {
        let namespace = item.namespace.as_deref().unwrap_or_default();
        let key = (namespace.to_owned(), item.name.clone());
        match kind {
            "persistentvolumes" => {
                let owner = claim::claim_of(object);
                let copied = owner.is_some_and(|(namespace, name)| {
                    self.copied
                        .contains_key(&(namespace.to_owned(), name.to_owned()))
                });
                if claim::restores_volume(object, copied) {
                    return Ok(true);
                }
                let why = if copied {
                    "its data comes from a copy"
                } else {
                    "it went with its claim"
                };
                self.report
                    .info(&format!("volume {} is not restored: {why}", item.name));
                self.done(
                    &resource.api.api_version,
                    "PersistentVolume",
                    None,
                    &item.name,
                    Done::Skipped,
                );
                Ok(false)
            }
            // The reason was given when the volumes were planned.
            "persistentvolumeclaims" => Ok(!self.state.lock().blocked.contains(&key)),
            "pods" => {
                let place = self.target(namespace);
                if let Some(node) = pinned_node(object) {
                    let nodes = Objects::new(
                        &self.context.clients.call,
                        &ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&()),
                        None,
                    );
                    if nodes.get(node).await?.is_none() {
                        let why = format!(
                            "pod {} was not restored: node {node} does not exist",
                            item.name
                        );
                        self.report.warning(Place::Namespace(place), &why);
                        return Ok(false);
                    }
                }
                let pod = jackline_policy::restore::volume::Pod::read(object);
                let blocked = pod.volumes.iter().find_map(|volume| match &volume.kind {
                    jackline_policy::restore::volume::VolumeKind::Claim(claim) => {
                        let key = (namespace.to_owned(), claim.clone());
                        let state = self.state.lock();
                        let missing = state.unmade.contains(&key) || state.blocked.contains(&key);
                        missing.then_some(claim)
                    }
                    _ => None,
                });
                if let Some(claim) = blocked {
                    let why = format!("pod {} was not restored: claim {claim} was not", item.name);
                    self.report.error(Place::Namespace(place), &why);
                    return Ok(false);
                }
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    /// Makes the object, or deals with the one that is there.
    ///
    /// # Errors
    /// As [`Run::item`].
    pub async fn put(
        &self,
        kind: &str,
        resource: &ServedResource,
        item: &Item,
        object: Value,
    ) -> Result<(), Failure> {
        let source = item.namespace.as_deref();
        let target = source.map(|namespace| self.target(namespace));
        if let Some(source) = source
            && !self.namespace(source).await?
        {
            let place = Place::from(target);
            let why = format!(
                "{kind} {} was not restored: its namespace is not there",
                item.name
            );
            self.report.error(place, &why);
            return Ok(());
        }
        let original_uid = json::text(&object, "/metadata/uid")
            .unwrap_or_default()
            .to_owned();
        let made_before = self.was_made_before(kind, item);
        let prepared = self.prepare_object(kind, resource, item, object).await?;
        let wanted = match self
            .finish_object(kind, item, &prepared, &original_uid)
            .await?
        {
            Ok(wanted) => wanted,
            Err(why) => {
                self.report.error(
                    Place::from(target),
                    &format!("{kind} {} was not restored: {why}", item.name),
                );
                return Ok(());
            }
        };
        let objects = Objects::new(&self.context.clients.call, &prepared.api, target);
        if made_before && objects.get(&item.name).await?.is_none() {
            self.report.info(&format!(
                "{kind} {} was restored by an earlier run of this restore and has gone since",
                item.name
            ));
            self.done(
                &prepared.api.api_version,
                &prepared.api.kind,
                target,
                &item.name,
                Done::Created,
            );
            return Ok(());
        }
        self.token.check()?;
        if prepared.binding == Some(claim::Binding::Keep)
            && let Err(error) = self.free_volume(&prepared.object).await
        {
            self.failed(
                kind,
                item,
                &format!("its volume is not free: {}", chain(&error)),
            );
        }
        let made = self.check_classes(&prepared.classes).await;
        let made = match made {
            Ok(()) => objects
                .create(&wanted, prepared.maker())
                .await
                .map_err(|error| chain(&error)),
            Err(why) => Err(why),
        };
        let done = match made {
            Ok(Some(made)) => self.made(kind, item, &objects, &prepared, &made).await,
            Ok(None) => self.exists(kind, item, &objects, &prepared, &wanted).await,
            Err(why) => {
                self.unmade(kind, item);
                self.failed(kind, item, &why);
                Ok(Done::Failed)
            }
        };
        let done = done.unwrap_or_else(|error| {
            self.failed(kind, item, &chain(&error));
            Done::Failed
        });
        self.report.info(&format!("{kind} {} {done}", item.name));
        self.done(
            &prepared.api.api_version,
            &prepared.api.kind,
            target,
            &item.name,
            done,
        );
        Ok(())
    }

    fn failed(&self, kind: &str, item: &Item, why: &str) {
        let place = item.namespace.as_deref();
        let place = Place::from(place.map(|namespace| self.target(namespace)));
        self.report.error(
            place,
            &format!("error restoring {kind} {}: {why}", item.name),
        );
    }

    /// Pods of a claim that is not there would wait for it for ever.
    fn unmade(&self, kind: &str, item: &Item) {
        if let ("persistentvolumeclaims", Some(namespace)) = (kind, &item.namespace) {
            let key = (namespace.clone(), item.name.clone());
            self.state.lock().unmade.insert(key);
        }
    }

    /// A storage class that a mapping names has to be there.
    async fn check_classes(&self, classes: &[String]) -> Result<(), String> {
        let api = ApiResource::erase::<k8s_openapi::api::storage::v1::StorageClass>(&());
        let api = Objects::new(&self.context.clients.call, &api, None);
        for class in classes {
            match api.get(class).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    return Err(format!(
                        "storage class {class}, to which the ConfigMap with label velero.io/change-storage-class maps its own, does \
                         not exist"
                    ));
                }
                Err(error) => return Err(chain(&error)),
            }
        }
        Ok(())
    }

    async fn prepare_object(
        &self,
        kind: &str,
        resource: &ServedResource,
        item: &Item,
        mut object: Value,
    ) -> Result<Prepared, Failure> {
        let binding = if kind == "persistentvolumeclaims" {
            Some(self.binding(item, &object).await?)
        } else {
            None
        };
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let version = version.rsplit('/').next().unwrap_or_default();
        let api = resource
            .in_version(version)
            .unwrap_or_else(|| resource.api.clone());
        object["apiVersion"] = Value::String(api.api_version.clone());
        // They tell which node ports a user chose, too.
        let managers = object["metadata"]["managedFields"].clone();
        let managers = Some(managers).filter(|list| list.as_array().is_some_and(|l| !l.is_empty()));
        let adaptation = &self.valid.adaptation;
        let node = adaptation.mappings.node(&object).map(str::to_owned);
        let status = self.strip(kind, &mut object, binding);
        if let (Some(claim::Binding::Provision), Some(node)) = (binding, node) {
            mapping::select_node(&mut object, &node);
        }
        let classes = adaptation.mappings.apply(kind, &mut object);
        for why in adaptation.modifiers.apply(kind, &mut object) {
            self.failed(kind, item, &why);
        }
        if let Some(namespace) = item.namespace.as_deref() {
            meta::put_namespace(&mut object, self.target(namespace));
        }
        let status = status.filter(|_| meta::keeps_status(&object, self.restores_status(kind)));
        Ok(Prepared {
            object,
            status,
            managers,
            api,
            binding,
            classes,
        })
    }

    /// Takes off an object what ties it to where it was; the same for both sides of a comparison. Gives the status.
    pub fn strip(
        &self,
        kind: &str,
        object: &mut Value,
        binding: Option<claim::Binding>,
    ) -> Option<Value> {
        let spec = &self.restore.spec;
        let context = action::Context {
            mapping: self.valid.scope.mapping(),
            preserve_node_ports: spec.preserve_node_ports.unwrap_or_default(),
        };
        action::apply(kind, object, context);
        match (kind, binding) {
            ("persistentvolumeclaims", Some(binding)) => claim::prepare_claim(object, binding),
            ("persistentvolumes", _) => claim::prepare_volume(object, self.valid.scope.mapping()),
            ("pods", _) => wait::remove(object),
            _ => {}
        }
        meta::reset(object);
        for key in [self.labels().backup.0, self.labels().restore.0] {
            json::remove(object, &["metadata", "labels"], key);
        }
        for key in [
            annotation::ANCESTOR_CLAIM_UID,
            annotation::RESTORE_HOOKS,
            annotation::RESTORE_OVER,
            annotation::RESTORED,
        ] {
            json::remove(object, &["metadata", "annotations"], key);
        }
        meta::take_status(object)
    }

    /// Adds what only a newly made object gets.
    async fn finish_object(
        &self,
        kind: &str,
        item: &Item,
        prepared: &Prepared,
        original_uid: &str,
    ) -> Result<Result<Value, String>, Failure> {
        let mut wanted = prepared.object.clone();
        meta::put_labels(&mut wanted, self.labels());
        let namespace = item.namespace.as_deref().unwrap_or_default();
        if prepared.binding == Some(claim::Binding::Provision)
            && let Some(uid) = self.copied.get(&(namespace.to_owned(), item.name.clone()))
        {
            let uid = uid.as_deref().unwrap_or(original_uid);
            claim::note_ancestor(&mut wanted, annotation::ANCESTOR_CLAIM_UID, uid);
        }
        if kind == "pods" {
            let volumes = self.plan().waits(namespace, &item.name);
            if !volumes.is_empty() {
                let Some(image) = self.waiter_image().await? else {
                    let why = "no image for its waiter is known: set --agent-image or run the DaemonSet node-agent";
                    return Ok(Err(why.to_owned()));
                };
                let waiter = wait::Waiter {
                    image: &image,
                    command: RESTORE_WAIT_PROGRAM,
                    restore: &self.uid,
                    volumes: &volumes,
                    over: annotation::RESTORE_OVER,
                    restored: annotation::RESTORED,
                    settings: &self.valid.adaptation.waiter,
                };
                wait::add(&mut wanted, waiter);
            }
            self.add_init_hooks(self.target(namespace), &mut wanted);
        }
        Ok(Ok(wanted))
    }

    async fn waiter_image(&self) -> Result<Option<String>, Failure> {
        let named = self.context.args.agent_image.clone();
        if let Some(image) = named.or_else(|| agents::image(&self.context.stores.agents)) {
            return Ok(Some(image));
        }
        // The watch may be behind. Many pods may need one: it is asked for once.
        let asked = self.agents_image.get_or_try_init(|| async {
            let agents = agents::now(self.context).await?;
            Ok::<_, Failure>(agents::image(&agents))
        });
        Ok(asked.await?.clone())
    }

    async fn binding(&self, item: &Item, object: &Value) -> Result<claim::Binding, Failure> {
        let namespace = item.namespace.as_deref().unwrap_or_default();
        let copied = self
            .copied
            .contains_key(&(namespace.to_owned(), item.name.clone()));
        let name = json::text(object, "/spec/volumeName").unwrap_or_default();
        let (mut live, mut volume) = (None, None);
        if !name.is_empty() {
            let api = ApiResource::erase::<k8s_openapi::api::core::v1::PersistentVolume>(&());
            live = Objects::new(&self.context.clients.call, &api, None)
                .get(name)
                .await?;
            volume = self.catalog.find("persistentvolumes", None, name);
            // What has a copy needs none that does not come back.
            let kind = "persistentvolumes";
            volume = volume.filter(|volume| !copied || self.admits(kind, None, volume));
        }
        let binding = claim::binding(claim::ClaimFacts {
            claim: object,
            volume: volume.as_ref(),
            live: live.as_ref(),
            copied,
            target: self.target(namespace),
        });
        Ok(binding)
    }

    /// Frees the volume that a claim goes back to.
    async fn free_volume(&self, claim: &Value) -> Result<(), kube::Error> {
        let name = json::text(claim, "/spec/volumeName").unwrap_or_default();
        let api = ApiResource::erase::<k8s_openapi::api::core::v1::PersistentVolume>(&());
        let volumes = Objects::new(&self.context.clients.call, &api, None);
        let live = volumes.get(name).await?;
        let (namespace, holder) = claim::key(claim);
        let ours = |live: &Value| claim::claim_of(live) == Some((&*namespace, &*holder));
        match live.filter(ours).as_ref().and_then(claim::release) {
            Some(patch) => volumes.patch(name, &patch).await,
            None => Ok(()),
        }
    }

    /// Whether an earlier run of this restore made the object: then it is not ours to make again.
    fn was_made_before(&self, kind: &str, item: &Item) -> bool {
        match (kind, item.namespace.as_deref()) {
            // One that waits for data is made again as long as the data is not back.
            ("pods", Some(namespace)) if !self.plan().waits(namespace, &item.name).is_empty() => {
                self.was_made_and_left(item)
            }
            ("persistentvolumeclaims", Some(namespace))
                if self.plan().restores_claim(namespace, &item.name) =>
            {
                false
            }
            _ => self.made_before.has(kind, self.home(kind, item).as_deref()),
        }
    }

    /// Whether an earlier run of this restore made the pod and its data has been back since.
    fn was_made_and_left(&self, item: &Item) -> bool {
        let namespace = item.namespace.as_deref().unwrap_or_default();
        let plan = self.plan();
        if plan.waits(namespace, &item.name).is_empty() {
            return false;
        }
        let begun = self.begun();
        plan.restorations.iter().any(|restoration| {
            restoration.namespace == namespace
                && restoration.waiters.iter().any(|(pod, _)| *pod == item.name)
                && begun
                    .iter()
                    .any(|volume| volume.phase().is_terminal() && self.is_of(volume, restoration))
        })
    }

    async fn made(
        &self,
        kind: &str,
        item: &Item,
        objects: &Objects,
        prepared: &Prepared,
        made: &Value,
    ) -> Result<Done, kube::Error> {
        self.remember(kind, item, prepared, made);
        let warn = |what: &str, why: &str| {
            let place = item.namespace.as_deref();
            let place = Place::from(place.map(|namespace| self.target(namespace)));
            let why = format!("{kind} {}: {what} could not be restored: {why}", item.name);
            self.report.warning(place, &why);
        };
        if let Some(status) = &prepared.status
            && !owners::has_status_of(made, FIELD_MANAGER)
        {
            let patch = serde_json::json!({"status": status});
            match objects.patch_status(&item.name, &patch).await {
                Err(kube::Error::Api(refusal)) if refusal.is_not_found() => warn(
                    "its status",
                    "its kind has no status of its own here, or the object has gone since it was made",
                ),
                Err(error) => warn("its status", &chain(&error)),
                Ok(()) => {}
            }
        }
        if let Some(managers) = &prepared.managers
            && (prepared.status.is_some() || !owners::are_back(managers, made, self.labels()))
        {
            // Last, for each write of ours makes us an owner.
            let patch = serde_json::json!({"metadata": {"managedFields": managers}});
            if let Err(error) = objects.patch(&item.name, &patch).await {
                warn("the owners of its fields", &chain(&error));
            }
        }
        Ok(Done::Created)
    }

    /// What comes after objects of this restore: volumes are filled and commands run in its pods, volumes of its claims get details back.
    fn remember(&self, kind: &str, item: &Item, prepared: &Prepared, made: &Value) {
        if let (Some(claim::Binding::Provision), Some(namespace)) =
            (prepared.binding, &item.namespace)
        {
            let key = (namespace.clone(), item.name.clone());
            self.state.lock().provisioned.insert(key);
        }
        if kind == "pods" {
            let uid = json::text(made, "/metadata/uid")
                .unwrap_or_default()
                .to_owned();
            let key = (
                item.namespace.clone().unwrap_or_default(),
                item.name.clone(),
            );
            let mut state = self.state.lock();
            if let Some(made) = &state.made {
                // Nobody listens any more when the restore is being given up.
                let _ = made.send((key.clone(), uid.clone()));
            }
            state.pods.insert(key, uid);
        }
    }

    fn restores_status(&self, kind: &str) -> bool {
        let Some(spec) = &self.restore.spec.restore_status else {
            return false;
        };
        let served = self.served.read().clone();
        let names = |list: &[String]| -> Vec<String> {
            let named = list.iter().filter(|name| !name.is_empty());
            named.map(|name| served.resolve(name)).collect()
        };
        let (included, excluded) = (
            names(&spec.included_resources),
            names(&spec.excluded_resources),
        );
        meta::admits_status(&included, &excluded, kind)
    }

    /// An object of this name is there.
    async fn exists(
        &self,
        kind: &str,
        item: &Item,
        objects: &Objects,
        prepared: &Prepared,
        wanted: &Value,
    ) -> Result<Done, kube::Error> {
        let Some(found) = objects.get(&item.name).await? else {
            // It has just gone.
            let made = objects.create(wanted, prepared.maker()).await?;
            if let Some(made) = &made {
                return self.made(kind, item, objects, prepared, made).await;
            }
            return Ok(Done::Failed);
        };
        if self.is_ours(kind, &found) {
            let fresh = owners::is_as_made(&found, prepared.maker());
            if fresh || owners::has_content_of(&found, FIELD_MANAGER) {
                // An earlier run may have been cut off right after it had made the object.
                return self.made(kind, item, objects, prepared, &found).await;
            }
            self.remember(kind, item, prepared, &found);
            return Ok(Done::Created);
        }
        let mut existing = found;
        self.strip(kind, &mut existing, prepared.binding);
        // Which node a volume was made for is no difference.
        if let Some(node) = mapping::selected_node(&prepared.object) {
            mapping::select_node(&mut existing, node);
        }
        let namespace = item
            .namespace
            .as_deref()
            .map(|namespace| self.target(namespace));
        let policy = self.valid.existing;
        match conflict::decide(
            kind,
            &prepared.api.kind,
            &prepared.object,
            &existing,
            policy,
        ) {
            Conflict::Same => Ok(Done::Skipped),
            Conflict::Leave(warning) => {
                self.report.warning(Place::from(namespace), &warning);
                Ok(Done::Failed)
            }
            Conflict::Patch(mut patch) => {
                self.token_ok()?;
                meta::put_labels(&mut patch, self.labels());
                match objects.patch(&item.name, &patch).await {
                    Ok(()) => Ok(Done::Updated),
                    Err(kube::Error::Api(status)) if status.code == 422 => {
                        // A field that cannot change: at least the labels tell which backup it is of.
                        let mut labels = serde_json::json!({});
                        meta::put_labels(&mut labels, self.labels());
                        objects.patch(&item.name, &labels).await?;
                        let why = format!(
                            "{kind} {} could not be updated: {}",
                            item.name, status.message
                        );
                        self.report.warning(Place::from(namespace), &why);
                        Ok(Done::Failed)
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn token_ok(&self) -> Result<(), kube::Error> {
        self.token
            .check()
            .map_err(|error| kube::Error::Service(Box::new(error)))
    }

    /// Whether an earlier run of this very restore made the object.
    pub fn is_ours(&self, kind: &str, found: &Value) -> bool {
        if kind == "pods"
            && let Some(restore) = wait::restore_of(found)
        {
            return restore == self.uid;
        }
        let restore = self.restore.metadata.creation_timestamp.as_ref();
        meta::is_of_restore(found, self.labels())
            && restore.is_some_and(|restore| is_younger(found, restore.0))
    }
}

/// Whether an object was made after a restore was asked for. Both times are the API server's, and whole seconds.
fn is_younger(object: &Value, restore: jiff::Timestamp) -> bool {
    let created = json::time(object, "/metadata/creationTimestamp");
    created.is_some_and(|created| created >= restore)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{context::unwatched, restore::run::idle::Idle};

    #[test]
    fn what_a_restore_made_is_not_older_than_its_restore() {
        let restore = "2026-01-01T00:00:10Z".parse().unwrap();
        for (created, expected) in [
            ("2026-01-01T00:00:09Z", false),
            ("2026-01-01T00:00:10Z", true),
            ("2026-01-01T00:00:11Z", true),
            ("", false),
        ] {
            let object = serde_json::json!({"metadata": {"creationTimestamp": created}});
            assert_eq!(is_younger(&object, restore), expected, "{created}");
        }
    }

    #[tokio::test]
    async fn the_image_of_agents_that_the_watch_lacks_is_asked_for() {
        let metadata =
            json!({"name": "agent", "namespace": "velero", "labels": {"name": "node-agent"}});
        let agent = json!({"metadata": metadata, "spec": {"containers": [{"image": "i:1"}]}});
        for (agents, image) in [(vec![], None), (vec![agent], Some("i:1"))] {
            let agents = unwatched::list(&agents);
            let idle = Idle::new(&[("/api/v1/namespaces/velero/pods", agents)]);
            let run = idle.run();
            assert_eq!(run.waiter_image().await.unwrap().as_deref(), image);
        }
    }
}
