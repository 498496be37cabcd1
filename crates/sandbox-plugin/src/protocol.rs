//! The words between a server and a plug-in: one JSON object on a line, each question with a number that its answer repeats.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What both sides must agree on.
pub(crate) const VERSION: u32 = 1;

/// What a server asks.
#[derive(Debug, Serialize)]
pub(crate) struct Question {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) ask: Ask,
}

#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// What can you do? Answered with [`Hello`].
    Hello { version: u32 },
    /// Make this. Answered with `{}` once its first process has been started.
    Create(Box<Create>),
    /// Which sandboxes of this server live? Answered with [`Listing`].
    List { owner: String },
    /// End this one; answered with `{}` once nothing of it runs any more, or if there is none.
    End { sandbox: String },
}

/// A sandbox that is to be made.
#[derive(Debug, Serialize)]
pub(crate) struct Create {
    /// Its name, which begins with the owner's and a dot.
    pub(crate) sandbox: String,
    /// To be listed with it.
    pub(crate) generation: u64,
    /// What its root file system is made of, if the environment says so.
    pub(crate) image: Option<String>,
    /// Its first process, as root in it.
    pub(crate) command: Vec<String>,
    /// Its variables, besides `PATH`.
    pub(crate) variables: BTreeMap<String, String>,
    /// What of this machine it sees.
    pub(crate) mounts: Vec<Mount>,
    pub(crate) limits: Limits,
}

#[derive(Debug, Serialize)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) processes: u32,
    /// Thousandths of a core.
    pub(crate) cpu_millis: u32,
    /// Of `/tmp`.
    pub(crate) tmp_bytes: u64,
}

/// An answer; what is in it depends on the question.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) ok: Option<serde_json::Value>,
    /// Why it could not be done, for a person.
    pub(crate) error: Option<String>,
}

/// What a plug-in's sandboxes are like. What it does not say, they are not.
#[derive(Clone, Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "it is what a plug-in says, word by word")]
pub(crate) struct Hello {
    pub(crate) version: u32,
    /// Each has a kernel of its own, and the hand's walls are not looked for.
    #[serde(default)]
    pub(crate) own_kernel: bool,
    /// User ids inside are others outside, and no two sandboxes share any.
    #[serde(default)]
    pub(crate) own_ids: bool,
    /// The limits are kept.
    #[serde(default)]
    pub(crate) limits: bool,
    /// It makes them of images.
    #[serde(default)]
    pub(crate) images: bool,
    #[serde(default)]
    pub(crate) way_out: WayOut,
}

/// How what programs send can leave.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WayOut {
    /// The first process has `CAP_NET_ADMIN` over a network of its own on this kernel.
    Sockets,
    /// It can connect to the unix sockets that are mounted.
    #[default]
    Forwarded,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    pub(crate) sandboxes: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Listed {
    pub(crate) sandbox: String,
    pub(crate) generation: u64,
}
