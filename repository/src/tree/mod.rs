//! Trees: the directories of a snapshot.

pub(crate) mod time;
