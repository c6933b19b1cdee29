//! Names of users and groups, as restic stores them beside their numbers.

use std::collections::HashMap;
use std::fs;

/// What `/etc/passwd` and `/etc/group` say, read once.
#[derive(Debug)]
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            users: read("/etc/passwd"),
            groups: read("/etc/group"),
        }
    }
}

impl Names {
    /// The user's name; empty where there is none.
    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_default()
    }

    pub(crate) fn user_ref(&self, uid: u32) -> &str {
        self.users.get(&uid).map_or("", String::as_str)
    }

    pub(crate) fn group_ref(&self, gid: u32) -> &str {
        self.groups.get(&gid).map_or("", String::as_str)
    }
}

/// Both files have the name first and the number third. The first line for a number wins.
fn read(path: &str) -> HashMap<u32, String> {
    let text = fs::read(path).unwrap_or_default();
    let mut names = HashMap::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(id)) =
            (fields.next(), fields.nth(1).and_then(|id| id.parse().ok()))
        {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_root() {
        let names = Names::default();
        assert_eq!(names.user(0), "root");
        assert_eq!(names.group_ref(0), "root");
        assert_eq!(names.user_ref(u32::MAX - 7), "");
    }
}
