use std::{collections::BTreeSet, io::Write};

use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::tarball::TarballWriter;

type Objects = Vec<(Entry, Vec<u8>)>;

fn all(bytes: &[u8]) -> Result<(Totals, Objects), TarballError> {
    let mut seen = Vec::new();
    let totals = read(bytes, Limits::default(), |entry, content| {
        seen.push((entry, content));
        Ok(())
    })?;
    Ok((totals, seen))
}

/// An archive with one entry whose header says whatever it likes.
fn hostile(name: &str, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(2);
    header.set_cksum();
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    tar.append(&header, &b"{}"[..]).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn names_that_leave_the_tree_are_refused() {
    for name in [
        "../../etc/cron.d/evil",
        "/etc/passwd",
        "resources/pods/namespaces/../../../x.json",
        "resources//pods/cluster/x.json",
        "resources/./pods/cluster/x.json",
        "resources/pods/namespaces/a?b/x.json",
        "..",
    ] {
        let result = all(&hostile(name, tar::EntryType::Regular));
        assert!(
            matches!(result, Err(TarballError::Name(_))),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn links_and_devices_are_refused() {
    use tar::EntryType::{Block, Char, Fifo, Link, Symlink};
    for kind in [Link, Symlink, Char, Block, Fifo] {
        let result = all(&hostile("resources/pods/namespaces/a/b.json", kind));
        assert!(
            matches!(result, Err(TarballError::NotAFile { .. })),
            "{kind:?}: {result:?}"
        );
    }
}

#[test]
fn too_much_is_refused_before_it_is_read() {
    let mut writer = TarballWriter::new(Vec::new(), 0).unwrap();
    writer
        .object("pods", "v1", Some("a"), "b", &vec![b' '; 5000])
        .unwrap();
    let bytes = writer.finish().unwrap();
    let read = |limits| read(bytes.as_slice(), limits, |_, _| Ok(()));
    let small = read(Limits {
        total: 1 << 20,
        object: 4999,
        ..Limits::default()
    });
    assert!(
        matches!(small, Err(TarballError::ObjectTooLarge { size: 5000, .. })),
        "{small:?}"
    );
    let whole = read(Limits {
        total: 6000,
        object: 5000,
        ..Limits::default()
    });
    assert!(
        matches!(whole, Err(TarballError::TooLarge(6000))),
        "{whole:?}"
    );
    assert!(
        read(Limits {
            total: 1 << 20,
            object: 5000,
            ..Limits::default()
        })
        .is_ok()
    );
}

#[test]
fn swarms_of_objects_are_refused() {
    let mut writer = TarballWriter::new(Vec::new(), 0).unwrap();
    for (kind, name) in [("pods", "a"), ("pods", "b"), ("secrets", "a")] {
        writer.object(kind, "v1", Some("n"), name, b"{}").unwrap();
    }
    let bytes = writer.finish().unwrap();
    let read = |objects, kinds| {
        let limits = Limits {
            objects,
            kinds,
            ..Limits::default()
        };
        read(bytes.as_slice(), limits, |_, _| Ok(())).map_err(|error| error.to_string())
    };
    // The second path of an object is not another object.
    let limits = Limits::default();
    assert!(limits.refusal(limits.objects).is_none());
    assert!(limits.refusal(limits.objects + 1).is_some());
    assert_eq!(read(3, 2).map(|totals| totals.objects), Ok(6));
    let objects = "the tarball holds more than 2 objects";
    assert_eq!(read(2, 2).unwrap_err(), objects);
    assert_eq!(
        read(3, 1).unwrap_err(),
        "the tarball holds more than 1 kinds"
    );
}

#[test]
fn names_that_no_object_can_have_are_refused() {
    let read = |kind: &str, namespace: Option<&str>, name: &str| {
        let mut writer = TarballWriter::new(Vec::new(), 0).unwrap();
        writer.object(kind, "v1", namespace, name, b"{}").unwrap();
        let read = all(&writer.finish().unwrap());
        read.map(drop).map_err(|error| error.to_string())
    };
    let long = |length| "n".repeat(length);
    assert_eq!(read(&long(317), Some(&long(63)), &long(1024)), Ok(()));
    assert_eq!(
        read("clusterroles.rbac.authorization.k8s.io", None, "corp\\ops"),
        Ok(())
    );
    let name = "the tarball holds the name of an object of 1025 bytes; at most 1024 are read";
    assert_eq!(read("pods", Some("n"), &long(1025)).unwrap_err(), name);
    let kind = "the tarball holds the name of a kind of 318 bytes; at most 317 are read";
    assert_eq!(read(&long(318), Some("n"), "a").unwrap_err(), kind);
    assert!(read("pods", Some(&long(64)), "a").is_err());
}

#[test]
fn a_backup_learns_that_no_restore_will_take_it() {
    let limits = Limits {
        objects: 2,
        names: 10,
        ..Limits::default()
    };
    let long = "n".repeat(1025);
    for (objects, expected) in [
        (&[("abc", Some("ns")), ("abcde", None)][..], None),
        (
            &[("abc", Some("ns")), ("abcdef", None)],
            Some("more than 10 bytes of names"),
        ),
        (
            &[("a", None), ("b", None), ("c", None)],
            Some("more than 2 objects"),
        ),
        (&[(&*long, None)], Some("of 1025 bytes; at most 1024")),
    ] {
        let refusal = limits.refusal_of(objects.iter().copied());
        let refusal = refusal.map(|refusal| refusal.to_string());
        match expected {
            None => assert_eq!(refusal, None),
            Some(why) => assert!(refusal.unwrap().contains(why), "{why}"),
        }
    }
}

#[test]
fn all_names_together_are_bounded() {
    let mut writer = TarballWriter::new(Vec::new(), 0).unwrap();
    for (namespace, name) in [(Some("ns"), "abc"), (None, "abcde")] {
        writer
            .object("things", "v1", namespace, name, b"{}")
            .unwrap();
    }
    let bytes = writer.finish().unwrap();
    let read = |names| {
        let limits = Limits {
            names,
            ..Limits::default()
        };
        read(bytes.as_slice(), limits, |_, _| Ok(())).map_err(|error| error.to_string())
    };
    // The second path of an object is not kept.
    assert!(read(10).is_ok());
    let why = "the tarball holds more than 9 bytes of names";
    assert_eq!(read(9).unwrap_err(), why);
}

#[test]
fn a_name_without_end_is_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 20);
    header.set_cksum();
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    tar.append(&header, std::io::repeat(b'a').take(1 << 20))
        .unwrap();
    let bytes = tar.into_inner().unwrap().finish().unwrap();
    assert!(matches!(all(&bytes), Err(TarballError::Read(_))));
}

#[test]
fn a_cut_or_garbled_archive_is_an_error() {
    let mut writer = TarballWriter::new(Vec::new(), 0).unwrap();
    writer
        .object("pods", "v1", Some("a"), "b", b"{\"x\":1}")
        .unwrap();
    let bytes = writer.finish().unwrap();
    assert!(all(&bytes[..bytes.len() / 2]).is_err());
    assert!(all(b"no gzip at all").is_err());
    let mut noise = GzEncoder::new(Vec::new(), Compression::fast());
    noise.write_all(&[7; 2048]).unwrap();
    assert!(all(&noise.finish().unwrap()).is_err());
}

#[test]
fn an_unknown_format_is_refused_and_the_first_one_is_read() {
    let with = |version: &str, path: &str| {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, content) in [("metadata/version", version), (path, "{}")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_bytes())
                .unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    };
    let path = "resources/pods/namespaces/a/b.json";
    assert!(matches!(all(&with("9.0.0\n", path)), Err(TarballError::Version(v)) if v == "9.0.0"));
    let (totals, seen) = all(&with("1", path)).unwrap();
    assert_eq!((totals.version.as_deref(), seen.len()), (Some("1"), 1));
    assert_eq!(seen[0].0.version, None);
    // What is no object is passed over.
    assert!(
        all(&with("1", "resources/pods/readme.txt"))
            .unwrap()
            .1
            .is_empty()
    );
}

#[test]
fn names_longer_than_a_tar_header_survive() {
    let name = "n".repeat(250);
    let mut writer = TarballWriter::new(Vec::new(), 0).unwrap();
    writer
        .object("configmaps", "v1", Some("team"), &name, b"{}")
        .unwrap();
    let (_, seen) = all(&writer.finish().unwrap()).unwrap();
    assert!(seen.iter().all(|(entry, _)| entry.name == name) && seen.len() == 2);
}

/// The objects that a real Velero stored, written again by us, make an archive of the same entries.
#[test]
fn what_velero_wrote_is_written_again_with_the_same_entries() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/velero-1.14/bucket/backups/first/first.tar.gz"
    );
    let velero = std::fs::read(path).unwrap();
    let (totals, objects) = all(&velero).unwrap();
    assert_eq!(totals.version.as_deref(), Some("1.1.0"));
    let mut writer = TarballWriter::new(Vec::new(), 1_700_000_000).unwrap();
    for (entry, content) in objects.iter().filter(|(entry, _)| entry.version.is_none()) {
        let (namespace, name) = (entry.namespace.as_deref(), entry.name.as_str());
        writer
            .object(&entry.resource, "v1", namespace, name, content)
            .unwrap();
    }
    let ours = writer.finish().unwrap();
    assert_eq!(listing(&ours), listing(&velero));
    assert_eq!(all(&ours).unwrap().1, objects);
}

/// Path, size, mode, owner and type of every entry.
fn listing(bytes: &[u8]) -> BTreeSet<(String, u64, u32, u64, u64, u8)> {
    let mut archive = tar::Archive::new(MultiGzDecoder::new(bytes));
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let header = entry.header();
        (
            String::from_utf8(entry.path_bytes().into_owned()).unwrap(),
            entry.size(),
            header.mode().unwrap() & 0o7777,
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.entry_type().as_byte(),
        )
    });
    entries.collect()
}
