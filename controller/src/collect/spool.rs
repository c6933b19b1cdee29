//! The collected objects: names in memory, contents in a file without a name, which is gone with the process.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use jackline_policy::{
    backup::{Catalogue, object::ObjectRef},
    labels::Labels,
};
use parking_lot::Mutex;

use super::facts::Facts;

/// An object in the spool.
#[derive(Debug, Clone)]
pub struct Item {
    /// Index of its kind in the catalogue.
    pub resource: usize,
    /// `None` for objects outside of namespaces.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Box<str>,
    offset: u64,
    length: usize,
}

/// Where objects are put while lists are read by several threads.
#[derive(Debug)]
pub(super) struct Spool {
    file: Mutex<(File, u64)>,
}

impl Spool {
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Mutex::new((tempfile::tempfile_in(directory)?, 0)),
        })
    }

    /// Appends the objects of a page; gives their offset.
    pub(super) fn append(&self, content: &[u8]) -> io::Result<u64> {
        let mut file = self.file.lock();
        let offset = file.1;
        // What a failed write leaves behind is written over.
        file.0.write_all_at(content, offset)?;
        file.1 += content.len() as u64;
        Ok(offset)
    }

    /// A second handle, to read.
    pub(super) fn reader(&self) -> io::Result<File> {
        self.file.lock().0.try_clone()
    }
}

/// Objects of one list, in the order of the list.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    content: Vec<u8>,
    pub(super) facts: Facts,
    /// Labels, for namespaces only: they are selected on this side.
    pub(super) namespace_labels: HashMap<String, Labels>,
}

/// A page is written out when it has grown to this.
const PAGE_BYTES: usize = 1 << 20;

impl Page {
    pub(super) fn push(
        &mut self,
        spool: &Spool,
        resource: usize,
        namespace: Option<Arc<str>>,
        name: &str,
        json: &[u8],
        flushed: &mut usize,
    ) -> io::Result<()> {
        self.items.push(Item {
            resource,
            namespace,
            name: name.into(),
            offset: self.content.len() as u64,
            length: json.len(),
        });
        self.content.extend_from_slice(json);
        if self.content.len() >= PAGE_BYTES {
            self.flush(spool, flushed)
        } else {
            Ok(())
        }
    }

    /// Writes out what has gathered; `flushed` is how many items have their final offset already.
    pub(super) fn flush(&mut self, spool: &Spool, flushed: &mut usize) -> io::Result<()> {
        let base = spool.append(&self.content)?;
        self.content.clear();
        for item in self.items.iter_mut().skip(*flushed) {
            item.offset += base;
        }
        *flushed = self.items.len();
        Ok(())
    }
}

/// Kind, namespace and name of an object.
type Name = (usize, Option<Arc<str>>, Box<str>);

/// Everything that was collected.
#[derive(Debug)]
pub struct Collection {
    /// The kinds of the cluster.
    pub catalogue: Catalogue,
    /// What was learnt about pods, claims and volumes.
    pub facts: Facts,
    items: Vec<Item>,
    by_name: HashMap<Name, usize>,
    kinds: HashMap<String, usize>,
    file: File,
}

impl Collection {
    pub(super) fn new(catalogue: Catalogue, file: File) -> Self {
        let names = catalogue
            .resources()
            .iter()
            .map(|resource| resource.group_resource());
        let kinds = names
            .enumerate()
            .map(|(index, name)| (name, index))
            .collect();
        Self {
            catalogue,
            facts: Facts::default(),
            items: Vec::new(),
            by_name: HashMap::new(),
            kinds,
            file,
        }
    }

    /// Adds objects; those that are known already stay as they are.
    pub(super) fn add(&mut self, page: Page) {
        for item in page.items {
            let key = (item.resource, item.namespace.clone(), item.name.clone());
            if let std::collections::hash_map::Entry::Vacant(entry) = self.by_name.entry(key) {
                entry.insert(self.items.len());
                self.items.push(item);
            }
        }
        self.facts.merge(page.facts);
    }

    /// All objects, kind by kind in collection order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The index of an object.
    pub fn find(&self, object: &ObjectRef) -> Option<usize> {
        let kind = *self.kinds.get(&object.resource)?;
        let namespace = object.namespace.as_deref().map(Arc::from);
        self.by_name
            .get(&(kind, namespace, object.name.as_str().into()))
            .copied()
    }

    /// An object's JSON.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read(&self, item: &Item) -> io::Result<Vec<u8>> {
        let mut content = vec![0; item.length];
        self.file.read_exact_at(&mut content, item.offset)?;
        Ok(content)
    }
}
