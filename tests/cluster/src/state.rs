//! What `attach` needs to know about a running cluster, in `cluster.json`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::place::Place;

const FILE: &str = "cluster.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// The nodes' names, the first one first.
    pub(crate) nodes: Vec<String>,
    /// On the machine's loopback.
    pub(crate) api_port: u16,
    /// On the machine's loopback; none when the cluster has no S3 server.
    pub(crate) s3_port: Option<u16>,
    pub(crate) control_plane_only: bool,
}

impl State {
    pub(crate) fn save(&self, place: &Place) -> Result<()> {
        place
            .write(FILE, serde_json::to_string_pretty(self)?)
            .map(drop)
    }

    pub(crate) fn load(place: &Place) -> Result<Self> {
        let path = place.path(FILE);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no cluster runs in {}", place.dir.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }
}
