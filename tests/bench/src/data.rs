//! The data that is backed up: the same bytes in every run, incompressible.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;

/// xorshift64*: fast, and nothing compresses or deduplicates it.
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Writes `size` bytes.
    pub(crate) fn write(&mut self, to: &mut impl Write, size: u64) -> Result<()> {
        let mut buffer = [0; 8 << 10];
        let mut left = size;
        while left > 0 {
            for word in buffer.chunks_exact_mut(8) {
                word.copy_from_slice(&self.next().to_le_bytes());
            }
            let now = left.min(buffer.len() as u64);
            to.write_all(&buffer[..now as usize])?;
            left -= now;
        }
        Ok(())
    }
}

/// `count` files of `size` bytes.
pub(crate) fn large(directory: &Path, count: u64, size: u64) -> Result<()> {
    fs::create_dir_all(directory)?;
    for index in 0..count {
        let file = File::create(directory.join(format!("large-{index}")))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        Noise::new(index + 1).write(&mut file, size)?;
        file.flush()?;
    }
    Ok(())
}

/// `count` files of 1 to 20 KiB, spread over `directories`.
pub(crate) fn many(directory: &Path, count: u64, directories: u64) -> Result<()> {
    let mut noise = Noise::new(77);
    for index in 0..directories {
        fs::create_dir_all(directory.join(format!("dir-{index:04}")))?;
    }
    for index in 0..count {
        let size = 1024 + noise.next() % (19 * 1024 + 1);
        let place = format!("dir-{:04}/file-{index:06}", index % directories);
        let mut content = Vec::with_capacity(size as usize);
        noise.write(&mut content, size)?;
        fs::write(directory.join(place), content)?;
    }
    Ok(())
}

/// `count` files of 16 bytes, each other ones, spread over `directories`.
pub(crate) fn tiny(directory: &Path, count: u64, directories: u64) -> Result<()> {
    for index in 0..directories {
        fs::create_dir_all(directory.join(format!("dir-{index:04}")))?;
    }
    for index in 0..count {
        // One directory after the other, as a program would that fills them.
        let place = format!("dir-{:04}/file-{index:07}", index * directories / count);
        fs::write(directory.join(place), format!("{index:016}"))?;
    }
    Ok(())
}

/// `count` files of `size` bytes, a thousand in a directory.
pub(crate) fn equal(directory: &Path, count: u64, size: u64) -> Result<()> {
    let mut noise = Noise::new(99);
    for index in 0..count {
        let inside = directory.join(format!("dir-{:04}", index / 1000));
        if index % 1000 == 0 {
            fs::create_dir_all(&inside)?;
        }
        let mut content = Vec::with_capacity(size as usize);
        noise.write(&mut content, size)?;
        fs::write(inside.join(format!("file-{index:06}")), content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_the_same_each_time_and_has_its_size() {
        let write = |size| {
            let mut bytes = Vec::new();
            Noise::new(5).write(&mut bytes, size).unwrap();
            bytes
        };
        assert_eq!(write(10_001).len(), 10_001);
        assert_eq!(write(100), write(10_000)[..100]);
        let directory = tempfile::tempdir().unwrap();
        many(directory.path(), 30, 4).unwrap();
        let size = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().metadata().unwrap().len();
        let sizes: Vec<u64> = fs::read_dir(directory.path().join("dir-0001"))
            .unwrap()
            .map(size)
            .collect();
        assert_eq!(sizes.len(), 8);
        assert!(
            sizes.iter().all(|size| (1024..=20 * 1024).contains(size)),
            "{sizes:?}"
        );
    }
}
