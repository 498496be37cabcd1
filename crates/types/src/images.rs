//! Which images environments may name.

use globset::{Glob, GlobSet, GlobSetBuilder};

/// Those that an operator lets environments name; any, unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct AllowedImages(Option<GlobSet>);

impl AllowedImages {
    /// Those that match one of these patterns, with commas between them; what is wrong with them.
    pub fn parse(patterns: &str) -> Result<Self, String> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns.split(',').map(str::trim) {
            if pattern.is_empty() {
                return Err("a pattern is empty".to_owned());
            }
            set.add(Glob::new(pattern).map_err(|error| error.to_string())?);
        }
        Ok(Self(Some(set.build().map_err(|error| error.to_string())?)))
    }

    /// Whether it may be named.
    pub fn allow(&self, image: &str) -> bool {
        self.0.as_ref().is_none_or(|set| set.is_match(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_allowed_by_patterns() {
        let some = AllowedImages::parse("python:*, ghcr.io/acme/*").unwrap();
        for image in ["python:3.13", "ghcr.io/acme/tools/x:1"] {
            assert!(some.allow(image), "{image}");
        }
        for image in ["python", "node:22", "evil/python:3.13", "ghcr.io/other/x", ""] {
            assert!(!some.allow(image), "{image}");
        }
        assert!(AllowedImages::default().allow("anything"));
        assert!(AllowedImages::parse("a,,b").is_err() && AllowedImages::parse("[").is_err());
    }
}
