//! One entry of a directory.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{quote, time};
use crate::id::Id;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeKind {
    File,
    Dir,
    Symlink,
    /// Block device.
    Dev,
    CharDev,
    Fifo,
    Socket,
    /// Something a newer program stored.
    Other(String),
}

impl NodeKind {
    fn name(&self) -> &str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::Dev => "dev",
            Self::CharDev => "chardev",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Other(name) => name,
        }
    }

    fn parse(name: &str) -> Self {
        match name {
            "file" => Self::File,
            "dir" => Self::Dir,
            "symlink" => Self::Symlink,
            "dev" => Self::Dev,
            "chardev" => Self::CharDev,
            "fifo" => Self::Fifo,
            "socket" => Self::Socket,
            other => Self::Other(other.into()),
        }
    }
}

/// An entry of a directory as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: NodeKind,
    /// Go's `os.FileMode`; see [`mode_from_unix`].
    pub(crate) mode: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) atime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) user: String,
    pub(crate) group: String,
    pub(crate) inode: u64,
    /// The device that holds the entry.
    pub(crate) device_id: u64,
    pub(crate) size: u64,
    pub(crate) links: u64,
    pub(crate) link_target: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The device that the entry is, for device nodes.
    pub(crate) device: u64,
    /// The blobs of a file, in order.
    pub(crate) content: Option<Vec<Id>>,
    /// The tree of a directory.
    pub(crate) subtree: Option<Id>,
}

impl Node {
    /// Appends the node as restic writes it.
    pub(crate) fn write(&self, out: &mut Vec<u8>, zone: &TimeZone) {
        out.extend_from_slice(b"{\"name\":\"");
        quote::write_name(out, &self.name);
        out.extend_from_slice(b"\",\"type\":\"");
        quote::write_json(out, self.kind.name().as_bytes());
        out.push(b'"');
        number_unless_zero(out, "mode", u64::from(self.mode));
        // Most entries were last changed when they were last modified: format once.
        let start = out.len();
        out.extend_from_slice(b",\"mtime\":\"");
        let text = out.len();
        time::write(out, self.mtime, zone);
        let end = out.len();
        out.push(b'"');
        for (name, value) in [(",\"atime\":\"", self.atime), (",\"ctime\":\"", self.ctime)] {
            out.extend_from_slice(name.as_bytes());
            if value == self.mtime {
                out.extend_from_within(text..end);
            } else {
                time::write(out, value, zone);
            }
            out.push(b'"');
        }
        debug_assert!(start < text);
        number(out, "uid", u64::from(self.uid));
        number(out, "gid", u64::from(self.gid));
        string_unless_empty(out, "user", self.user.as_bytes());
        string_unless_empty(out, "group", self.group.as_bytes());
        number_unless_zero(out, "inode", self.inode);
        number_unless_zero(out, "device_id", self.device_id);
        number_unless_zero(out, "size", self.size);
        number_unless_zero(out, "links", self.links);
        string_unless_empty(out, "linktarget", &self.link_target);
        if std::str::from_utf8(&self.link_target).is_err() {
            key(out, "linktarget_raw");
            base64_string(out, &self.link_target);
        }
        if !self.xattrs.is_empty() {
            key(out, "extended_attributes");
            for (at, (name, value)) in self.xattrs.iter().enumerate() {
                out.extend_from_slice(if at == 0 {
                    b"[{\"name\":\""
                } else {
                    b",{\"name\":\""
                });
                quote::write_json(out, name);
                out.extend_from_slice(b"\",\"value\":");
                base64_string(out, value);
                out.push(b'}');
            }
            out.push(b']');
        }
        number_unless_zero(out, "device", self.device);
        key(out, "content");
        match &self.content {
            None => out.extend_from_slice(b"null"),
            Some(ids) => {
                out.push(b'[');
                for (at, id) in ids.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    id_string(out, id);
                }
                out.push(b']');
            }
        }
        if let Some(id) = &self.subtree {
            key(out, "subtree");
            id_string(out, id);
        }
        out.push(b'}');
    }
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    key(out, name);
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut value = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn number_unless_zero(out: &mut Vec<u8>, name: &str, value: u64) {
    if value != 0 {
        number(out, name, value);
    }
}

fn string_unless_empty(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if !value.is_empty() {
        key(out, name);
        out.push(b'"');
        quote::write_json(out, value);
        out.push(b'"');
    }
}

fn base64_string(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(BASE64.encode(value).as_bytes());
    out.push(b'"');
}

fn id_string(out: &mut Vec<u8>, id: &Id) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + 64, 0);
    // The buffer has exactly twice the id's length, so this cannot fail.
    let _ = hex::encode_to_slice(id.0, &mut out[start..]);
    out.push(b'"');
}

/// The shape of a node in JSON.
#[derive(Deserialize)]
pub(super) struct RawNode<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(default)]
    mode: u32,
    #[serde(borrow)]
    mtime: Cow<'a, str>,
    #[serde(borrow)]
    atime: Cow<'a, str>,
    #[serde(borrow)]
    ctime: Cow<'a, str>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(borrow, default)]
    user: Cow<'a, str>,
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    links: u64,
    #[serde(borrow, default)]
    linktarget: Cow<'a, str>,
    #[serde(borrow, default)]
    linktarget_raw: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    extended_attributes: Option<Vec<RawXattr<'a>>>,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    content: Option<Vec<Id>>,
    #[serde(default)]
    subtree: Option<Id>,
}

#[derive(Deserialize)]
struct RawXattr<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
}

impl RawNode<'_> {
    pub(super) fn into_node(self) -> Result<Node, String> {
        let name = quote::unquote(&self.name)
            .ok_or_else(|| format!("the name {:?} is not quoted as Go does", self.name))?;
        let when = |text: &str| {
            time::parse(text.as_bytes()).ok_or_else(|| format!("{text:?} is no RFC 3339 time"))
        };
        let base64 = |text: &str| {
            BASE64
                .decode(text)
                .map_err(|_| "a value is not base64".to_owned())
        };
        let mut xattrs = Vec::new();
        for xattr in self.extended_attributes.into_iter().flatten() {
            let value = xattr.value.map_or(Ok(Vec::new()), |value| base64(&value))?;
            xattrs.push((xattr.name.into_owned().into_bytes(), value));
        }
        Ok(Node {
            name,
            kind: NodeKind::parse(&self.kind),
            mode: self.mode,
            mtime: when(&self.mtime)?,
            atime: when(&self.atime)?,
            ctime: when(&self.ctime)?,
            uid: self.uid,
            gid: self.gid,
            user: self.user.into_owned(),
            group: self.group.into_owned(),
            inode: self.inode,
            device_id: self.device_id,
            size: self.size,
            links: self.links,
            link_target: match self.linktarget_raw {
                Some(raw) => base64(&raw)?,
                None => self.linktarget.into_owned().into_bytes(),
            },
            xattrs,
            device: self.device,
            content: self.content,
            subtree: self.subtree,
        })
    }
}

const GO_DIR: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_CHAR_DEVICE: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

/// Go's mode of a `st_mode`, and what kind of entry it is. `None` for a type that no Unix has.
pub(crate) fn mode_from_unix(mode: u32) -> Option<(NodeKind, u32)> {
    let (kind, bits) = match mode & libc::S_IFMT {
        libc::S_IFREG => (NodeKind::File, 0),
        libc::S_IFDIR => (NodeKind::Dir, GO_DIR),
        libc::S_IFLNK => (NodeKind::Symlink, GO_SYMLINK),
        libc::S_IFBLK => (NodeKind::Dev, GO_DEVICE),
        libc::S_IFCHR => (NodeKind::CharDev, GO_DEVICE | GO_CHAR_DEVICE),
        libc::S_IFIFO => (NodeKind::Fifo, GO_FIFO),
        libc::S_IFSOCK => (NodeKind::Socket, GO_SOCKET),
        _ => return None,
    };
    let mut go = bits | (mode & 0o777);
    for (unix, bit) in [
        (libc::S_ISUID, GO_SETUID),
        (libc::S_ISGID, GO_SETGID),
        (libc::S_ISVTX, GO_STICKY),
    ] {
        if mode & unix != 0 {
            go |= bit;
        }
    }
    Some((kind, go))
}

/// Permission bits of a Go mode as chmod takes them.
pub(crate) fn permissions(mode: u32) -> u32 {
    let mut unix = mode & 0o777;
    for (bit, value) in [
        (GO_SETUID, libc::S_ISUID),
        (GO_SETGID, libc::S_ISGID),
        (GO_STICKY, libc::S_ISVTX),
    ] {
        if mode & bit != 0 {
            unix |= value;
        }
    }
    unix
}
