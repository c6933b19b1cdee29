//! Random trees that no sane program would make, the same for the same seed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, makedev};

use super::{make_node, noise, set_times};

/// Numbers from a seed (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What trees may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// What restic 0.14 stores as we do and brings back.
    Restic14,
    /// Everything that can be stored.
    Newer,
}

/// Pieces of names. All that can be printed is in Unicode 13.
const PIECES: &[&[u8]] = &[
    b"a",
    b"B",
    b"0",
    b".",
    b"..",
    b"-",
    b" ",
    b"\t",
    b"\n",
    b"\r",
    b"\\",
    b"\\n",
    b"\\x41",
    b"\\u0041",
    b"\"",
    b"'",
    b"`",
    b"<",
    b">",
    b"&",
    b"&lt;",
    b"$HOME",
    b"~",
    b"%s",
    b"*",
    b"?",
    b"[a]",
    b"!",
    b"#",
    b"\x01",
    b"\x07",
    b"\x0b",
    b"\x1b[2J",
    b"\x7f",
    b"\xff",
    b"\xfe\xff",
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf0\x9f",
    b"\xe2\x82",
    "ü".as_bytes(),
    "e\u{301}".as_bytes(),
    "世界".as_bytes(),
    "🚀".as_bytes(),
    "👩\u{200d}💻".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{2029}".as_bytes(),
    "\u{a0}".as_bytes(),
    "\u{ad}".as_bytes(),
    "\u{feff}".as_bytes(),
    "\u{202e}".as_bytes(),
    "\u{e000}".as_bytes(),
    "\u{fffd}".as_bytes(),
    "\u{ffff}".as_bytes(),
    "\u{10ffff}".as_bytes(),
];

/// Makes one tree.
pub struct Wild {
    pub random: Random,
    era: Era,
    /// Files that may get another name.
    linkable: Vec<PathBuf>,
    /// What was written before, to be written again.
    contents: Vec<Vec<u8>>,
    left: u32,
}

impl Wild {
    /// Makes `root` and at most `entries` entries below it.
    pub fn tree(root: &Path, seed: u64, era: Era, entries: u32) {
        let mut wild = Self {
            random: Random::new(seed),
            era,
            linkable: Vec::new(),
            contents: Vec::new(),
            left: entries,
        };
        fs::create_dir(root).unwrap();
        while wild.left > 0 {
            wild.fill(root, 0);
        }
    }

    fn fill(&mut self, dir: &Path, depth: u32) {
        let mut taken: BTreeSet<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        for _ in 0..self.random.below(14) {
            if self.left == 0 {
                break;
            }
            let name = OsStr::from_bytes(&self.name()).to_owned();
            // A socket's path is limited.
            if taken.insert(name.clone()) && dir.as_os_str().len() + name.len() < 3000 {
                self.left -= 1;
                self.entry(&dir.join(name), depth);
            }
        }
    }

    fn name(&mut self) -> Vec<u8> {
        loop {
            let mut name = Vec::new();
            for _ in 0..=self.random.below(5) {
                match self.random.below(8) {
                    0 => name.push(self.random.next() as u8),
                    1 if self.era == Era::Newer => {
                        let c = char::from_u32(self.random.below(0x11_0000) as u32);
                        name.extend(c.unwrap_or('x').encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    _ => name.extend(self.random.pick(PIECES)),
                }
            }
            if self.random.one_in(20) {
                name = name.iter().copied().cycle().take(255).collect();
            }
            name.retain(|byte| !matches!(byte, 0 | b'/'));
            if !matches!(&name[..], b"" | b"." | b"..") {
                return name;
            }
        }
    }

    fn entry(&mut self, path: &Path, depth: u32) {
        let kind = self.random.below(24);
        match kind {
            0..4 if depth < 8 => {
                fs::create_dir(path).unwrap();
                self.fill(path, depth + 1);
            }
            4..7 => symlink(OsStr::from_bytes(&self.link_target()), path).unwrap(),
            7 | 8 if !self.linkable.is_empty() => {
                let at = self.random.below(self.linkable.len() as u64) as usize;
                // The metadata are those of the first name.
                return fs::hard_link(&self.linkable[at], path).unwrap();
            }
            9 => make_node(path, FileType::Fifo, 0o600, 0),
            10 => {
                let kind = self
                    .random
                    .pick(&[FileType::CharacterDevice, FileType::BlockDevice]);
                let (major, minor) = (
                    self.random.below(4096) as u32,
                    self.random.below(1 << 20) as u32,
                );
                make_node(path, kind, 0o600, makedev(major, minor));
            }
            11 => make_node(path, FileType::Socket, 0o600, 0),
            _ => self.file(path),
        }
        if kind != 11 && self.random.one_in(4) {
            self.linkable_unless_dir(path);
        }
        self.metadata(path);
    }

    fn linkable_unless_dir(&mut self, path: &Path) {
        if !fs::symlink_metadata(path).unwrap().is_dir() {
            self.linkable.push(path.to_owned());
        }
    }

    fn link_target(&mut self) -> Vec<u8> {
        let mut target = Vec::new();
        for _ in 0..=self.random.below(4) {
            target.extend(self.name());
            target.push(b'/');
        }
        if self.era == Era::Newer {
            return target;
        }
        let target = String::from_utf8_lossy(&target);
        target.replace(['\x08', '\x0c'], "").into_bytes()
    }

    fn file(&mut self, path: &Path) {
        let seed = self.random.next();
        let mut data = match self.random.below(8) {
            0 if !self.contents.is_empty() => {
                let at = self.random.below(self.contents.len() as u64) as usize;
                self.contents[at].clone()
            }
            1 => Vec::new(),
            2 => vec![0; self.random.below(3_000_000) as usize],
            3 => b"all work and no play ".repeat(self.random.below(10_000) as usize),
            4 => noise(seed, self.random.below(2_000_000) as usize),
            5 => noise(
                seed,
                self.random
                    .pick(&[1, 63, 64, 65, 524_287, 524_288, 524_289]),
            ),
            _ => noise(seed, self.random.below(5_000) as usize),
        };
        if self.random.one_in(8) {
            let tail = noise(seed ^ 1, self.random.below(1_000_000) as usize);
            data.extend(tail);
        }
        let file = fs::File::create(path).unwrap();
        file.write_all_at(&data, 0).unwrap();
        if self.random.one_in(8) {
            file.set_len(data.len() as u64 + self.random.below(5_000_000))
                .unwrap();
        }
        if data.len() < 3_000_000 {
            self.contents.push(data);
        }
    }

    /// Owner, mode, extended attributes, times: the order in which none undoes another.
    fn metadata(&mut self, path: &Path) {
        let kind = FileType::from_raw_mode(std::os::unix::fs::MetadataExt::mode(
            &fs::symlink_metadata(path).unwrap(),
        ));
        let owner = |random: &mut Random| match random.below(3) {
            0 => 0,
            1 => random.pick(&[1, 12, 1000, 65534]),
            _ => random.below(u64::from(u32::MAX)) as u32,
        };
        let (uid, gid) = (owner(&mut self.random), owner(&mut self.random));
        lchown(path, Some(uid), Some(gid)).unwrap();
        if kind != FileType::Symlink {
            let any = self.random.below(0o10000) as u32;
            let mode = self.random.pick(&[0o644, 0o755, 0, 0o7777, any]);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        if self.random.one_in(3) && (kind != FileType::Symlink || self.era == Era::Newer) {
            self.xattrs(path, kind);
        }
        if self.random.one_in(2) {
            // What restic can restore lies between 1678 and 2262.
            let seconds = self.random.below(18_400_000_000) as i64 - 9_200_000_000;
            let nanos = self.random.below(1_000_000_000) as i64;
            let precision = self.random.pick(&[1, 1_000, 1_000_000, 1_000_000_000]);
            set_times(path, (seconds, nanos / precision * precision));
        }
    }

    fn xattrs(&mut self, path: &Path, kind: FileType) {
        // Only files and directories have attributes of users.
        let file = matches!(kind, FileType::RegularFile | FileType::Directory);
        for _ in 0..=self.random.below(3) {
            let space = if file {
                self.random.pick(&["user", "trusted"])
            } else {
                "trusted"
            };
            let name = self.name();
            let name: String = String::from_utf8_lossy(&name).chars().take(50).collect();
            let name = match self.era {
                Era::Restic14 => name.replace(['\x08', '\x0c'], ""),
                Era::Newer => name,
            };
            let seed = self.random.next();
            let length = self.random.pick(&[0, 1, 20, 300, 3000]);
            xattr::set(path, format!("{space}.x{name}"), &noise(seed, length)).unwrap();
        }
        if file && self.random.one_in(3) {
            xattr::set(path, "system.posix_acl_access", &self.acl()).unwrap();
        }
        if kind == FileType::Directory && self.random.one_in(3) {
            xattr::set(path, "system.posix_acl_default", &self.acl()).unwrap();
        }
    }

    /// Owner, one user, group, mask, others; as the kernel stores them: tag, permissions, id.
    fn acl(&mut self) -> Vec<u8> {
        let nobody = u32::MAX;
        let user = self.random.below(5_000) as u32;
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in [
            (1_u16, nobody),
            (2, user),
            (4, nobody),
            (0x10, nobody),
            (0x20, nobody),
        ] {
            let permissions = self.random.below(8) as u16;
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        acl
    }
}
