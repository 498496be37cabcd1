//! What Debian's package tools need of the host beside `/usr`, for sandboxes that install with them: where packages come from, who signs them, and the names of the system's users.
//! No password, no key that signs, and no address with a password in it is ever copied.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::public::copy_public;
use crate::remove::remove_tree;

/// Ids from here on are people.
const PEOPLE: u32 = 1_000;
const NOBODY: u32 = 65_534;
/// No index in other languages, no second user (the network is behind a proxy that is inside), and what only recommends itself stays out.
const SETTINGS: &str = "APT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\nDpkg::Use-Pty \"0\";\n";

/// Makes them in `root`.
pub(crate) fn build(root: &Path) -> io::Result<()> {
    remove_tree(root)?;
    let (etc, host) = (root.join("etc"), Path::new("/etc"));
    for directory in [
        "apt/sources.list.d",
        "apt/trusted.gpg.d",
        "apt/keyrings",
        "apt/preferences.d",
        "apt/apt.conf.d",
    ] {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(etc.join(directory))?;
        if directory != "apt/apt.conf.d" {
            for entry in fs::read_dir(host.join(directory)).into_iter().flatten().flatten() {
                copy_unless_secret(&entry.path(), &etc.join(directory).join(entry.file_name()))?;
            }
        }
    }
    for file in ["apt/sources.list", "apt/trusted.gpg"] {
        copy_unless_secret(&host.join(file), &etc.join(file))?;
    }
    settings(&etc)?;
    let users = fs::read_to_string(host.join("passwd")).unwrap_or_default();
    let groups = fs::read_to_string(host.join("group")).unwrap_or_default();
    let users = of_the_system(&users, "root:x:0:0:root:/root:/bin/bash");
    let locked = users
        .iter()
        .filter_map(|line| Some(format!("{}:*:19000:0:99999:7:::", line.split_once(':')?.0)));
    fs::write(etc.join("shadow"), lines(locked))?;
    fs::write(etc.join("passwd"), lines(users.iter()))?;
    fs::write(etc.join("group"), lines(of_the_system(&groups, "root:x:0:").iter()))
}

/// How apt works in a sandbox.
pub(crate) fn settings(etc: &Path) -> io::Result<()> {
    let place = etc.join("apt/apt.conf.d");
    fs::create_dir_all(&place)?;
    fs::write(place.join("00sandbox"), SETTINGS)
}

/// Copies a public file that names no password.
fn copy_unless_secret(from: &Path, to: &Path) -> io::Result<()> {
    let text = fs::read(from).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let secret = text.match_indices("://").any(|(at, _)| {
        let authority = text[at + 3..].split(['/', ' ', '\n']).next();
        authority.is_some_and(|authority| authority.contains('@'))
    });
    if secret { Ok(()) } else { copy_public(from, to) }
}

/// The entries of a file of users or groups that are not people.
fn of_the_system(file: &str, first: &str) -> Vec<String> {
    let id = |line: &str| line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
    let system = |line: &&str| id(line).is_some_and(|id| (1..PEOPLE).contains(&id) || id == NOBODY);
    let mut kept = vec![first.to_owned()];
    // A group's members may be people.
    kept.extend(file.lines().filter(system).map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.len() == 4 { format!("{}:", fields[..3].join(":")) } else { line.to_owned() }
    }));
    kept
}

fn lines(of: impl Iterator<Item = impl AsRef<str>>) -> String {
    of.fold(String::new(), |mut text, line| {
        text.push_str(line.as_ref());
        text.push('\n');
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_left_out() {
        let users = "root:x:0:0:root:/root:/bin/zsh\nmail:x:8:8:mail:/var/mail:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nbroken\n";
        let kept = of_the_system(users, "root");
        assert_eq!(
            kept,
            ["root", "mail:x:8:8:mail:/var/mail:/bin/sh", "nobody:x:65534:65534::/:/bin/false"]
        );
        let groups = of_the_system("adm:x:4:ann,bob\nusers:x:100:\nann:x:1000:\n", "root:x:0:");
        assert_eq!(groups, ["root:x:0:", "adm:x:4:", "users:x:100:"]);
    }
}
