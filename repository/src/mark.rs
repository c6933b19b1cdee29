//! Which blobs the snapshots use.

use std::borrow::Cow;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::blobs::BlobReader;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::BlobKind;
use crate::tree;

/// Trees read at once.
const CONCURRENCY: usize = 8;

/// A set of blobs, by their number in an index.
#[derive(Debug)]
pub(crate) struct Marks(Vec<u64>);

impl Marks {
    pub(crate) fn new(length: usize) -> Self {
        Self(vec![0; length.div_ceil(64)])
    }

    /// Adds a number; `false` if it was there.
    pub(crate) fn insert(&mut self, number: usize) -> bool {
        let (word, bit) = (&mut self.0[number / 64], 1 << (number % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(crate) fn contains(&self, number: usize) -> bool {
        self.0[number / 64] & 1 << (number % 64) != 0
    }
}

/// What is wrong with a tree: it cannot be read, or it names what is not there.
pub(crate) type OnDamage<'a> = &'a mut (dyn FnMut(Error) -> Result<()> + Send);

/// Marks everything that the trees in `roots` lead to. Damage goes to `on_damage`, which decides whether to go on.
/// Returns how many trees there are.
pub(crate) async fn mark(
    reader: &BlobReader,
    roots: impl IntoIterator<Item = Id>,
    marks: &mut Marks,
    cancel: &CancellationToken,
    on_damage: OnDamage<'_>,
) -> Result<u64> {
    let index = &reader.index;
    let mut waiting: Vec<Id> = roots.into_iter().collect();
    let mut loading = FuturesUnordered::new();
    let mut trees = 0;
    loop {
        while loading.len() < CONCURRENCY {
            let Some(id) = waiting.pop() else { break };
            match index.number(BlobKind::Tree, &id) {
                Some(number) if marks.insert(number) => {
                    trees += 1;
                    loading.push(load(reader, id));
                }
                Some(_) => {}
                None => on_damage(Error::corrupt(format!("tree {id}"), "no index lists it"))?,
            }
        }
        let Some((id, loaded)) = loading.next().await else {
            return Ok(trees);
        };
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let references = match loaded {
            Ok(references) => references,
            Err(error @ Error::Corrupt { .. }) => {
                on_damage(error)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        for data in &references.data {
            match index.number(BlobKind::Data, data) {
                Some(number) => {
                    marks.insert(number);
                }
                None => {
                    let reason = format!("it names data {data}, which no index lists");
                    on_damage(Error::corrupt(format!("tree {id}"), reason))?;
                }
            }
        }
        waiting.extend(references.trees);
    }
}

#[derive(Debug, Default)]
pub(crate) struct References {
    pub(crate) data: Vec<Id>,
    pub(crate) trees: Vec<Id>,
}

async fn load(reader: &BlobReader, id: Id) -> (Id, Result<References>) {
    let json = match reader.load(BlobKind::Tree, &id).await {
        Ok(json) => json,
        Err(error) => return (id, Err(error)),
    };
    let parsed = tokio::task::spawn_blocking(move || references(&id, &json)).await;
    (
        id,
        parsed.unwrap_or_else(|error| Err(Error::Internal(error.to_string()))),
    )
}

/// The blobs that a tree names.
pub(crate) fn references(id: &Id, json: &[u8]) -> Result<References> {
    #[derive(Deserialize)]
    struct Node<'a> {
        #[serde(borrow, rename = "type", default)]
        kind: Cow<'a, str>,
        #[serde(default)]
        content: Option<Vec<Id>>,
        #[serde(default)]
        subtree: Option<Id>,
    }
    let mut references = References::default();
    tree::each_node(json, |node: Node<'_>| {
        if node.kind == "dir" && node.subtree.is_none() {
            return Err("a directory in it has no tree".to_owned());
        }
        references.data.extend(node.content.into_iter().flatten());
        references.trees.extend(node.subtree);
        Ok(())
    })
    .map_err(|reason| Error::corrupt(format!("tree {id}"), reason))?;
    Ok(references)
}
