//! What a sandbox may reach. A decision by name; which addresses a name may stand for is decided where it is dialled.

use crate::{Host, HostRule, Refusal};

/// What one sandbox may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The public internet.
    Unrestricted,
    /// Only these hosts.
    Limited(Vec<HostRule>),
}

impl Policy {
    /// Whether a host may be reached, as far as its name decides.
    pub fn check(&self, host: &Host) -> Result<(), Refusal> {
        match self {
            Self::Unrestricted => Ok(()),
            Self::Limited(rules) if rules.iter().any(|rule| rule.covers(host)) => Ok(()),
            Self::Limited(_) => Err(Refusal::NotAllowed(host.clone())),
        }
    }

    /// Whether what a connection says of its destination must agree with where it goes: one address may serve many names, and only some of them may be allowed.
    pub(crate) fn inspects(&self) -> bool {
        matches!(self, Self::Limited(_))
    }
}
