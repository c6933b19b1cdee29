//! Progress of long operations, as seen by the caller.

/// Receives progress. Called from the task that awaits the operation, a few times a second, never from a worker.
pub trait Progress: Send + Sync {
    /// What is to be done in total, as far as it is known now. May be called again with a better figure.
    fn total(&self, bytes: u64, files: u64) {
        let _ = (bytes, files);
    }

    /// This much more is done.
    fn advance(&self, bytes: u64, files: u64) {
        let _ = (bytes, files);
    }

    /// The store has taken this much more: an attempt that fails now was not for nothing.
    fn stored(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// Ignores all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
