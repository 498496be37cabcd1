//! What becomes of a question: an answer now, or later when a sandbox has started or died.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use super::Office;
use crate::engine::Layer;
use crate::launcher::layer::{layer_dir, session_of};
use crate::launcher::members::{Member, Order};
use crate::launcher::session::make_session_dirs;
use crate::launcher::uids::{IdMapping, range_of};
use crate::launcher::wire::{self, Answer, Ask, Listed, PAGE, Question};
use crate::launcher::{Trouble, limits_by, log, probe};
use crate::seam::{Limits, SandboxKey, Trust, check_part};

impl Office {
    pub(super) fn decide(&mut self, question: &Question, begun: bool) -> Verdict {
        match &question.ask {
            Ask::Hello { .. } => Verdict::now(Answer::Hello {
                version: wire::VERSION,
                pid: std::process::id(),
                isolated: self.options.isolated,
                limits: limits_by(self.ready.cgroups.as_ref()),
                disks: self.ready.disks.is_some(),
                root: self.options.root.clone(),
            }),
            Ask::Quit {} => {
                self.end_all();
                Verdict::Later
            }
            Ask::Create { key, .. } if self.is_dying(key) => Verdict::Later,
            Ask::Create { .. } | Ask::Attach { .. } if self.quit_by.is_some() => {
                Verdict::now(Answer::Absent { alive: None })
            }
            Ask::Create { key, generation, limits, env, network, trust, layer } => {
                if self.members.contains_key(key) {
                    return self.connect(key, *generation);
                }
                if begun {
                    return Verdict::failed(Trouble::new(
                        "the sandbox died while it started",
                        "see the launcher's log; the memory limit may be too low to start anything",
                    ));
                }
                let wanted = Wanted {
                    key,
                    generation: *generation,
                    limits: *limits,
                    env,
                    network: *network,
                    trust: trust.as_ref(),
                    layer: layer.as_ref(),
                };
                match self.create(&wanted) {
                    Ok(()) => Verdict::Begun,
                    Err(trouble) => Verdict::failed(trouble),
                }
            }
            Ask::Give { spare, to } => match self.give(spare, to) {
                Ok(true) => Verdict::now(Answer::Done {}),
                Ok(false) => Verdict::now(Answer::Absent { alive: None }),
                Err(error) => Verdict::failed(Trouble::io("cannot give a sandbox away", &error)),
            },
            Ask::Attach { key, generation } => self.connect(key, *generation),
            Ask::Stop { key } => {
                self.kill(|k| k == key);
                self.when_gone(|k| k == key)
            }
            Ask::StopSession { session } => {
                self.kill(|k| k.session == *session);
                self.when_gone(|k| k.session == *session)
            }
            Ask::List { after } => Verdict::now(self.list(after.as_ref())),
        }
    }

    fn create(&mut self, wanted: &Wanted<'_>) -> Result<(), Trouble> {
        let Wanted { key, generation, limits, env, network, trust, layer } = *wanted;
        let bad = |e: crate::error::SandboxError| Trouble::new(e.to_string(), "use another id");
        check_part("session", &key.session).map_err(bad)?;
        check_part("name", &key.name).map_err(bad)?;
        let layer = match layer {
            Some(layer) => {
                check_part("layer", &layer.name).map_err(bad)?;
                Some((layer_dir(&self.options.dir, layer), layer))
            }
            None => None,
        };
        let making = layer.as_ref().filter(|(_, layer)| layer.building);
        let prepare = |e: io::Error| probe::explain("make the session's directories", &e);
        let session = match making {
            Some((dir, _)) => session_of(dir).map_err(prepare)?,
            None => self.options.workspaces.join(&key.session),
        };
        let base = self.base_for(&session).map_err(prepare)?;
        // What becomes a layer belongs to nobody in particular.
        let owner = base.filter(|_| making.is_none());
        let fresh = make_session_dirs(&session, owner, layer.is_some()).map_err(prepare)?;
        let isolated = self.options.isolated;
        let disk = match (&mut self.ready.disks, owner) {
            (Some(disks), Some(owner)) => {
                let disk = disks.of_session(&session, limits.workspace_bytes, owner, fresh);
                disk.map_err(|e| probe::explain("mount the session's disk", &e))?
            }
            _ => None,
        };
        let order = Order {
            key,
            generation,
            limits,
            env,
            network,
            trust,
            layer: layer.as_ref().map(|(dir, layer)| (dir.as_path(), *layer)),
            session,
            disk: disk.as_ref().map(|disk| disk.number),
            fresh,
            base,
            isolated,
        };
        let member = Member::start(&order, &self.ready, disk.map(|disk| disk.trees))?;
        self.members.insert(key.clone(), member);
        Ok(())
    }

    /// False if there is none that has started.
    fn give(&mut self, spare: &SandboxKey, to: &SandboxKey) -> io::Result<bool> {
        let ready = |member: &Member| member.starting.is_none() && !member.has_ended();
        if !self.members.get(spare).is_some_and(ready) || self.members.contains_key(to) {
            return Ok(false);
        }
        let workspaces = &self.options.workspaces;
        // What is mounted in the sandbox stays mounted, whatever its directory is called.
        fs::rename(workspaces.join(&spare.session), workspaces.join(&to.session))?;
        if let Some(member) = self.members.remove(spare) {
            self.members.insert(to.clone(), member);
        }
        Ok(true)
    }

    pub(super) fn tend_disks(&mut self) {
        let busy = !self.waiting.is_empty();
        if self.quit_by.is_none()
            && let Some(disks) = &mut self.ready.disks
        {
            disks.tend(busy);
        }
    }

    /// The ids of a session: the ones its files have, or new ones.
    fn base_for(&mut self, session: &std::path::Path) -> io::Result<Option<u32>> {
        if self.mapping == IdMapping::Single {
            return Ok(None);
        }
        if let Some(base) = range_of(&session.join("workspace")) {
            return Ok(Some(base));
        }
        let live: BTreeSet<u32> = self
            .members
            .values()
            .filter_map(|m| m.base)
            .chain(self.dying.iter().filter_map(|d| d.base))
            .collect();
        self.ranges.take(&self.options.workspaces, &live).map(Some)
    }

    fn connect(&mut self, key: &SandboxKey, generation: u64) -> Verdict {
        let Some(member) = self.members.get(key) else {
            return Verdict::now(Answer::Absent { alive: None });
        };
        if member.generation != generation {
            return Verdict::now(Answer::Absent { alive: Some(member.generation) });
        }
        if member.starting.is_some() {
            return Verdict::Later;
        }
        let connected = member.connect().and_then(|stream| {
            let mut descriptors = vec![stream];
            descriptors.extend(member.sockets()?);
            Ok(descriptors)
        });
        match connected {
            Ok(descriptors) => {
                let kept = member.kept.clone();
                Verdict::Now(Answer::Stream { generation, kept }, descriptors)
            }
            Err(error) => {
                log(&format!("{key} does not take connections ({error}): ending it"));
                self.kill(|k| k == key);
                Verdict::now(Answer::Absent { alive: None })
            }
        }
    }

    fn list(&self, after: Option<&SandboxKey>) -> Answer {
        let mut rest = self
            .members
            .iter()
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .map(|(key, m)| Listed { key: key.clone(), generation: m.generation });
        let sandboxes = rest.by_ref().take(PAGE).collect();
        Answer::Listing { sandboxes, more: rest.next().is_some() }
    }

    fn when_gone(&self, which: impl Fn(&SandboxKey) -> bool) -> Verdict {
        if self.members.keys().any(&which) || self.dying.iter().any(|d| which(&d.key)) {
            Verdict::Later
        } else {
            Verdict::now(Answer::Done {})
        }
    }
}

/// A sandbox that is to be made.
struct Wanted<'a> {
    key: &'a SandboxKey,
    generation: u64,
    limits: Limits,
    env: &'a BTreeMap<String, String>,
    network: bool,
    trust: Option<&'a Trust>,
    layer: Option<&'a Layer>,
}

/// What becomes of a question.
pub(super) enum Verdict {
    /// With descriptors for the other end.
    Now(Answer, Vec<OwnedFd>),
    Later,
    /// Later, and its sandbox has been started.
    Begun,
}

impl Verdict {
    fn now(answer: Answer) -> Self {
        Self::Now(answer, Vec::new())
    }

    fn failed(trouble: Trouble) -> Self {
        Self::now(Answer::Failed { what: trouble.what, fix: trouble.fix })
    }
}
