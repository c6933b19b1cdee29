//! Claims that pods of others use: such a pod has no waiter, and sees files come while it runs.

use std::collections::{BTreeMap, BTreeSet};

use jackline_policy::restore::volume::{Plan, Restoration};
use jackline_runtime::Failure;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt, api::ListParams};

use super::{pods::RestoredPod, report::Place, run::Run};

impl Run<'_> {
    /// A claim that pods of others mount is not restored into: they would write while it is filled.
    pub(super) async fn leave_used_claims(&mut self, plan: &mut Plan) -> Result<(), Failure> {
        let wanted: BTreeSet<String> = plan
            .restorations
            .iter()
            .filter(|restoration| restoration.claim.is_some())
            .map(|restoration| restoration.namespace.clone())
            .collect();
        let begun = self.begun();
        for namespace in wanted {
            let target = self.target(&namespace).to_owned();
            let pods = self.pods_of(&target).await?;
            for claim in plan
                .claims(&namespace)
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
            {
                let user = pods.iter().find(|pod| pod.uses(&claim, &self.uid));
                let Some(user) = user else { continue };
                if begun
                    .iter()
                    .any(|volume| self.is_for(volume, &target, &claim))
                {
                    continue;
                }
                plan.restorations.retain(|restoration| {
                    restoration.namespace != namespace || restoration.claim.as_ref() != Some(&claim)
                });
                self.refuse_claim(&namespace, &target, &claim, &user.name_any())
                    .await?;
            }
        }
        Ok(())
    }

    async fn refuse_claim(
        &mut self,
        namespace: &str,
        target: &str,
        claim: &str,
        user: &str,
    ) -> Result<(), Failure> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.clients.call.clone(), target);
        let place = target.to_owned();
        match claims.get_metadata_opt(claim).await? {
            Some(_) => self.report.warning(
                Place::Namespace(&place),
                &format!(
                    "the data of claim {claim} was not restored: pod {user} is using the claim"
                ),
            ),
            None => {
                self.blocked
                    .insert((namespace.to_owned(), claim.to_owned()));
                self.report.error(
                    Place::Namespace(&place),
                    &format!(
                        "claim {claim} was not restored: pod {user}, which this restore did not make, waits for it and would \
                         write into it before the data is back; scale its workload down and restore again"
                    ),
                );
            }
        }
        Ok(())
    }

    /// Names the pods that others made meanwhile (a workload scaled up, or put back by its own tools) and that ran before the data of
    /// their claims was back.
    pub(super) async fn name_early_pods(&self, back: &[&Restoration]) -> Result<(), Failure> {
        let begun = self.begun();
        let mut claims: BTreeMap<&str, Vec<(&str, Timestamp)>> = BTreeMap::new();
        for restoration in back {
            let volume = begun.iter().find(|volume| self.is_of(volume, restoration));
            let filled =
                volume.and_then(|volume| volume.status.as_ref()?.completion_timestamp.as_ref());
            if let (Some(claim), Some(filled)) = (&restoration.claim, filled) {
                let target = self.target(&restoration.namespace);
                claims.entry(target).or_default().push((claim, filled.0));
            }
        }
        for (target, claims) in claims {
            let pods = self.pods_of(target).await?;
            for (claim, filled) in claims {
                for pod in pods
                    .iter()
                    .filter(|pod| pod.uses(claim, &self.uid) && pod.ran_before(filled))
                {
                    let pod = pod.name_any();
                    self.report.warning(
                        Place::Namespace(target),
                        &format!(
                            "pod {pod}, which this restore did not make, ran before the data of claim {claim} was back: restart it"
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    async fn pods_of(&self, namespace: &str) -> Result<Vec<RestoredPod>, kube::Error> {
        let pods: Api<RestoredPod> = Api::namespaced(self.context.clients.call.clone(), namespace);
        Ok(pods.list(&ListParams::default()).await?.items)
    }
}
