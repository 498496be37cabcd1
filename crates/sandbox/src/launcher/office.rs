//! The launcher's loop: connections of servers on one side, sandboxes on the other.
//! Nothing in it blocks; what a request has to wait for is remembered and answered when it comes.

mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use super::disk::Disks;
use super::members::{Dying, Member};
use super::start::Ready;
use super::uids::{IdMapping, Ranges};
use super::wire::{self, Answer, Ask, Question, Reply};
use super::{Options, Trouble, limits_by, log, now};
use crate::seam::SandboxKey;
use verdict::Verdict;

/// How long a launcher that nobody ever spoke to waits for its server.
const FIRST_HELLO: Duration = Duration::from_mins(1);
/// How long the dying may take when everything ends.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often groups of the dead are tried again.
const SWEEP: Duration = Duration::from_millis(5);

struct Connection {
    number: u64,
    socket: OwnedFd,
    greeted: bool,
    gone: bool,
}

/// A request that waits for a sandbox to start or to die.
struct Waiting {
    connection: u64,
    question: Question,
    /// Its sandbox has been started once.
    begun: bool,
}

/// The loop's state.
pub(crate) struct Office {
    options: Options,
    ready: Ready,
    mapping: IdMapping,
    ranges: Ranges,
    connections: Vec<Connection>,
    next_connection: u64,
    members: BTreeMap<SandboxKey, Member>,
    dying: Vec<Dying>,
    waiting: Vec<Waiting>,
    /// When to end for want of a server.
    alone_until: Option<Duration>,
    quit_by: Option<Duration>,
    buffer: Vec<u8>,
}

impl Office {
    pub(crate) fn new(options: Options, ready: Ready) -> Self {
        let ranges = Ranges::after(&options.workspaces);
        Self {
            mapping: if options.isolated { IdMapping::detect() } else { IdMapping::Single },
            ranges,
            options,
            ready,
            connections: Vec::new(),
            next_connection: 0,
            members: BTreeMap::new(),
            dying: Vec::new(),
            waiting: Vec::new(),
            alone_until: Some(now() + FIRST_HELLO),
            quit_by: None,
            buffer: Vec::new(),
        }
    }

    /// Serves until it is told to quit or nobody needs it any more. Returns the exit code.
    pub(crate) fn run(mut self) -> i32 {
        log(&format!("started, limits by {:?}", limits_by(self.ready.cgroups.as_ref())));
        loop {
            if let Err(error) = self.turn() {
                log(&format!("poll: {error}"));
                return 1;
            }
            if self.alone_until.is_some_and(|deadline| now() >= deadline) && self.quit_by.is_none()
            {
                log("no server came back: ending");
                self.end_all();
            }
            if let Some(deadline) = self.quit_by
                && (self.dying.is_empty() || now() >= deadline)
            {
                return self.close();
            }
        }
    }

    fn close(self) -> i32 {
        if let Some(cgroups) = &self.ready.cgroups {
            cgroups.close();
        }
        for waiting in &self.waiting {
            if matches!(waiting.question.ask, Ask::Quit {})
                && let Some(connection) =
                    self.connections.iter().find(|c| c.number == waiting.connection)
            {
                let reply = Reply { id: waiting.question.id, answer: Answer::Done {} };
                drop(wire::send(&connection.socket, &reply, &[]));
            }
        }
        log("ended");
        drop((self.ready.lock, self.ready.reserved));
        0
    }

    /// Waits for the next thing to happen and deals with it.
    fn turn(&mut self) -> io::Result<()> {
        let timeout = self.timeout();
        let happened = self.wait(timeout)?;
        if happened.listener {
            self.accept();
        }
        for index in happened.connections {
            self.listen(index);
        }
        self.watch_members(&happened.members);
        self.collect();
        self.connections.retain(|c| !c.gone);
        self.note_company();
        self.settle_waiting();
        self.tend_disks();
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let mut deadlines: Vec<Duration> = Vec::new();
        deadlines.extend(self.alone_until);
        deadlines.extend(self.quit_by);
        deadlines.extend(self.ready.disks.as_ref().and_then(Disks::deadline));
        deadlines.extend(self.members.values().filter_map(|m| Some(m.starting.as_ref()?.1)));
        if self.dying.iter().any(|d| d.pidfd.is_none()) {
            deadlines.push(now() + SWEEP);
        }
        let next = deadlines.into_iter().min()?;
        Some(next.saturating_sub(now()))
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<Happened> {
        let mut fds = vec![PollFd::new(&self.ready.listener, PollFlags::IN)];
        fds.extend(self.connections.iter().map(|c| PollFd::new(&c.socket, PollFlags::IN)));
        let mut keys = Vec::new();
        for (key, member) in &self.members {
            fds.push(PollFd::new(&member.pidfd, PollFlags::IN));
            keys.push(key.clone());
            if let Some((pipe, _)) = &member.starting {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                keys.push(key.clone());
            }
        }
        fds.extend(
            self.dying
                .iter()
                .filter_map(|d| d.pidfd.as_ref())
                .map(|p| PollFd::new(p, PollFlags::IN)),
        );
        // Rounded up, or the last fraction of a millisecond would be spent spinning.
        let timeout = timeout.map(|t| t + Duration::from_micros(500));
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let first_member = 1 + self.connections.len();
        let connections = (0..self.connections.len()).filter(|i| ready[1 + i]).collect();
        let members = keys
            .into_iter()
            .enumerate()
            .filter(|(i, _)| ready[first_member + i])
            .map(|(_, key)| key)
            .collect();
        Ok(Happened { listener: ready[0], connections, members })
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(&self.ready.listener, flags) else { return };
        let me = rustix::process::geteuid();
        match rustix::net::sockopt::socket_peercred(&socket) {
            Ok(peer) if peer.uid == me => {
                let number = self.next_connection;
                self.next_connection += 1;
                self.connections.push(Connection { number, socket, greeted: false, gone: false });
            }
            Ok(peer) => log(&format!("refused a connection of user {}", peer.uid.as_raw())),
            Err(error) => log(&format!("refused a connection: {error}")),
        }
    }

    /// Reads everything a connection has to say.
    fn listen(&mut self, index: usize) {
        loop {
            let socket = self.connections[index].socket.as_fd();
            match wire::receive::<Question>(socket, &mut self.buffer) {
                Ok(Some((question, _))) => self.answer(index, question),
                Ok(None) => {
                    self.connections[index].gone = true;
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log(&format!("dropped a connection: {error}"));
                    self.connections[index].gone = true;
                    return;
                }
            }
        }
    }

    fn answer(&mut self, index: usize, question: Question) {
        let number = self.connections[index].number;
        match &question.ask {
            Ask::Hello { linger_ms, .. } => {
                self.connections[index].greeted = true;
                self.options.linger = Duration::from_millis(*linger_ms);
            }
            Ask::Create { .. }
            | Ask::Give { .. }
            | Ask::Quit {}
            | Ask::Attach { .. }
            | Ask::Stop { .. }
            | Ask::StopSession { .. }
            | Ask::List { .. } => {}
        }
        self.consider(number, question, false);
    }

    /// Answers a question, or puts it aside until it can be answered.
    fn consider(&mut self, connection: u64, question: Question, begun: bool) {
        let id = question.id;
        match self.decide(&question, begun) {
            Verdict::Later => self.waiting.push(Waiting { connection, question, begun }),
            Verdict::Begun => self.waiting.push(Waiting { connection, question, begun: true }),
            Verdict::Now(answer, descriptors) => self.reply(connection, id, answer, &descriptors),
        }
    }

    fn reply(&mut self, number: u64, id: u64, answer: Answer, descriptors: &[OwnedFd]) {
        let Some(connection) = self.connections.iter_mut().find(|c| c.number == number) else {
            return;
        };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if let Err(error) = wire::send(&connection.socket, &Reply { id, answer }, &descriptors) {
            log(&format!("dropped a connection that does not listen: {error}"));
            connection.gone = true;
        }
    }

    fn is_dying(&self, key: &SandboxKey) -> bool {
        self.dying.iter().any(|d| d.key == *key)
    }

    fn kill(&mut self, which: impl Fn(&SandboxKey) -> bool) {
        let keys: Vec<SandboxKey> = self.members.keys().filter(|k| which(k)).cloned().collect();
        for key in keys {
            if let Some(member) = self.members.remove(&key) {
                self.dying.push(member.die(key));
            }
        }
    }

    fn end_all(&mut self) {
        self.kill(|_| true);
        self.alone_until = None;
        self.quit_by.get_or_insert_with(|| now() + QUIT_TIMEOUT);
    }

    /// Notices sandboxes that have started, failed to, or died.
    fn watch_members(&mut self, stirred: &BTreeSet<SandboxKey>) {
        let late: Vec<SandboxKey> = self
            .members
            .iter()
            .filter(|(_, m)| m.starting.as_ref().is_some_and(|(_, deadline)| now() >= *deadline))
            .map(|(key, _)| key.clone())
            .collect();
        for key in late {
            let trouble =
                Trouble::new("the sandbox did not start in time", "see the launcher's log");
            self.fail(&key, &trouble);
        }
        for key in stirred {
            let Some(member) = self.members.get_mut(key) else { continue };
            if let Some((pipe, _)) = &member.starting {
                let mut fds = [PollFd::new(pipe, PollFlags::IN)];
                let spoke = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
                if spoke.is_ok_and(|n| n > 0)
                    && let Some(Err(trouble)) = member.progress()
                {
                    self.fail(key, &trouble);
                    continue;
                }
            }
            if self.members.get(key).is_some_and(Member::has_ended) {
                self.kill(|k| k == key);
            }
        }
    }

    /// Ends a sandbox that did not start and remembers why, for those who asked for it.
    fn fail(&mut self, key: &SandboxKey, trouble: &Trouble) {
        log(&format!("{key}: {}", trouble.what));
        self.kill(|k| k == key);
        let mut told = Vec::new();
        for (at, waiting) in self.waiting.iter().enumerate() {
            if matches!(&waiting.question.ask, Ask::Create { key: k, .. } if k == key) {
                told.push(at);
            }
        }
        for at in told.into_iter().rev() {
            let Waiting { connection, question, .. } = self.waiting.remove(at);
            let Trouble { what, fix } = trouble;
            let answer = Answer::Failed { what: what.clone(), fix: fix.clone() };
            self.reply(connection, question.id, answer, &[]);
        }
    }

    fn collect(&mut self) {
        self.dying.retain_mut(|dying| !dying.collect());
    }

    /// Starts to count down when the last server is gone, and stops when one is there.
    fn note_company(&mut self) {
        if self.quit_by.is_some() {
            return;
        }
        if self.connections.iter().any(|c| c.greeted) {
            self.alone_until = None;
        } else if self.alone_until.is_none() {
            self.alone_until = Some(now() + self.options.linger);
        }
    }

    /// Looks at every request put aside again.
    fn settle_waiting(&mut self) {
        let numbers: BTreeSet<u64> = self.connections.iter().map(|c| c.number).collect();
        for waiting in std::mem::take(&mut self.waiting) {
            if numbers.contains(&waiting.connection) {
                self.consider(waiting.connection, waiting.question, waiting.begun);
            }
        }
    }
}

/// What one wait found.
struct Happened {
    listener: bool,
    connections: Vec<usize>,
    members: BTreeSet<SandboxKey>,
}
