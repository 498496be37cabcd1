//! What an environment has installed. Names go to their manager as they are and to nobody else; what could be an option of it, or a word of a shell, is no name.

use crate::{Fields, Invalid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Packages by manager, each in the manager's own notation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages {
    /// Always `packages`.
    #[serde(rename = "type")]
    pub kind: PackagesKind,
    /// Debian packages.
    pub apt: Vec<String>,
    /// Rust crates with programs.
    pub cargo: Vec<String>,
    /// Ruby gems.
    pub gem: Vec<String>,
    /// Go programs.
    pub go: Vec<String>,
    /// Node packages.
    pub npm: Vec<String>,
    /// Python packages.
    pub pip: Vec<String>,
}

/// The constant `packages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackagesKind {
    /// The constant.
    #[default]
    Packages,
}

impl Default for Packages {
    fn default() -> Self {
        let none = Vec::new;
        Self {
            kind: PackagesKind::Packages,
            apt: none(),
            cargo: none(),
            gem: none(),
            go: none(),
            npm: none(),
            pip: none(),
        }
    }
}

impl Packages {
    /// Whether nothing is to be installed.
    pub fn is_empty(&self) -> bool {
        [&self.apt, &self.cargo, &self.gem, &self.go, &self.npm, &self.pip]
            .iter()
            .all(|list| list.is_empty())
    }

    /// These with the lists that `value` names in the place of their own.
    pub(super) fn patched(self, value: Value, path: &str) -> Result<Self, Invalid> {
        let mut fields = Fields::new(value, path)?;
        if let Some(kind) = fields.string("type")?
            && kind != "packages"
        {
            return Err(fields.unknown_tag(&kind, &["packages"]));
        }
        let mut list = |name: &str, stored: Vec<String>, also: &str| {
            let list = fields.list(name, PACKAGES_MAX, |value, at| check(value, at, also))?;
            Ok::<Vec<String>, Invalid>(list.unwrap_or(stored))
        };
        let packages = Self {
            kind: PackagesKind::Packages,
            apt: list("apt", self.apt, ".+-:=~*")?,
            cargo: list("cargo", self.cargo, "_-@.+^~=<>*,")?,
            gem: list("gem", self.gem, "._-:~<>=+,")?,
            go: list("go", self.go, "._~/@+-")?,
            npm: list("npm", self.npm, "@/._~^<>=*+:#-|")?,
            pip: list("pip", self.pip, " ._-[]<>=,~!+*@:/#")?,
        };
        fields.finish()?;
        Ok(packages)
    }
}

/// Most packages of one manager.
const PACKAGES_MAX: usize = 1_000;

/// Letters, digits and what else is `also` in a manager's names; none begins like an option.
fn check(value: Value, at: String, also: &str) -> Result<String, Invalid> {
    let package = crate::fields::string(value, &at)?;
    crate::fields::length(&package, &at, 1, 512)?;
    let known = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    let begins = |c: char| c.is_ascii_alphanumeric() || (c == '@' && also.starts_with('@'));
    let named = package.chars().all(known) && package.starts_with(begins);
    // To apt, a name with a minus at its end is one to remove.
    if !named || package.ends_with(['-', ' ']) {
        return Err(Invalid::new(at, "is not the name of a package"));
    }
    Ok(package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_in_the_managers_own_notation_pass() {
        let value = json!({
            "type": "packages",
            "apt": ["g++", "curl=7.88.1-10+deb12u5", "libc6:i386", "postgresql-client-15"],
            "cargo": ["ripgrep@14.0.0", "cargo-nextest"],
            "gem": ["rails:7.1.0", "mini_racer"],
            "go": ["example.com/x/tools/cmd/goimports@latest"],
            "npm": ["@types/node@20.1.0", "left-pad@^1.3.0", "typescript"],
            "pip": ["numpy==2.0.1", "uvicorn[standard] >= 0.30, < 1", "x @ https://files.example/x.whl"],
        });
        let packages = Packages::default().patched(value.clone(), "packages").unwrap();
        assert_eq!(serde_json::to_value(packages).unwrap(), value);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (manager, name) in [
            ("apt", "curl-"),
            ("apt", "-oDebug=1"),
            ("apt", "./evil.deb"),
            ("apt", "a b"),
            ("cargo", "--git"),
            ("gem", "x;id"),
            ("go", "a$(id)"),
            ("npm", "`id`"),
            ("npm", "-g"),
            ("pip", "--index-url=https://evil.example"),
            ("pip", " --pre"),
            ("pip", "a && id"),
            ("pip", "a'b"),
            ("pip", ""),
            ("pip", "a\nb"),
            ("pip", "é"),
        ] {
            let mut value = json!({});
            value[manager] = json!([name]);
            let refused = Packages::default().patched(value, "packages").unwrap_err();
            assert_eq!(refused.path, format!("packages.{manager}.0"), "{name:?}");
        }
    }
}
