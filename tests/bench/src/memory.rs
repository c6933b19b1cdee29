//! Memory that the machine has, and keeps. A virtual machine may give free memory back to its host and have to ask for it
//! again, page by page: then the host decides how long a run takes, and each tool's share of it is hidden.
//!
//! What is given back is free blocks of 2 MiB and more. So most of the memory is taken once, and given up again but for a
//! page here and there, as long as the bench runs: what is free in between is in pieces too small to be given back.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};

const PIECE: usize = 256 << 10;
const PAGE: u64 = 4096;
/// More than this no suite uses.
const MOST: u64 = 12 << 30;
/// Left for everything else while the memory is taken.
const REST: u64 = 3 << 30;

/// Takes memory for a file system that lies in memory; `available` is what the machine can give. The file has to be
/// removed in the end.
pub(crate) fn keep(file: &Path, available: u64) -> Result<()> {
    let mut kept = File::create(file).with_context(|| format!("{}", file.display()))?;
    let stat = rustix::fs::fstatvfs(&kept)?;
    let free = (stat.f_bavail * stat.f_frsize).min(available.saturating_sub(REST));
    let pieces = free.min(MOST) / PIECE as u64;
    let piece = vec![1; PIECE];
    for _ in 0..pieces {
        kept.write_all(&piece)?;
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for piece in 0..pieces {
        let start = piece * PIECE as u64 + PAGE;
        fallocate(&kept, hole, start, PIECE as u64 - PAGE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_page_of_each_piece_is_kept() {
        let file = Path::new("/dev/shm").join(format!("jackline-kept-{}", std::process::id()));
        keep(&file, REST + 10 * PIECE as u64).unwrap();
        let meta = std::fs::metadata(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(meta.len(), 10 * PIECE as u64);
        assert_eq!(meta.blocks() * 512, 10 * PAGE);
    }
}
