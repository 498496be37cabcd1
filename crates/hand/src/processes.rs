//! Every process of the sandbox is a child of PID 1 in the end: here they are reaped, their exits noted, and all of them killed when a call must stop.

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs, io,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

/// Exits that are remembered for whoever asks.
const REMEMBERED: usize = 256;

#[derive(Default)]
struct Exits {
    codes: HashMap<i32, i32>,
    order: VecDeque<i32>,
    /// Where a kernel has no descriptors of processes: closed when the process has been reaped.
    watched: HashMap<i32, OwnedFd>,
    spawned: u64,
}

/// The processes of the sandbox.
#[derive(Clone)]
pub(crate) struct Processes {
    exits: Arc<(Mutex<Exits>, Condvar)>,
}

impl Processes {
    /// Starts reaping. Where this process is not PID 1 it adopts what its children leave behind.
    pub(crate) fn start() -> Self {
        let exits = Arc::new((Mutex::new(Exits::default()), Condvar::new()));
        if !is_init() {
            let _ = rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1));
        }
        let noted = Arc::clone(&exits);
        std::thread::spawn(move || reap(&noted));
        Self { exits }
    }

    /// Says that a child was started, so that the reaper looks for it.
    pub(crate) fn started(&self) {
        let (exits, woken) = &*self.exits;
        exits.lock().unwrap_or_else(PoisonError::into_inner).spawned += 1;
        woken.notify_all();
    }

    /// What becomes readable when a child ends; nothing if it has ended and was reaped.
    pub(crate) fn end_of(&self, pid: i32) -> io::Result<Option<OwnedFd>> {
        let child = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"))?;
        match pidfd_open(child, PidfdFlags::empty()) {
            Ok(end) => Ok(Some(end)),
            Err(Errno::SRCH) => Ok(None),
            Err(Errno::NOSYS) => {
                let (end, held) = pipe_with(PipeFlags::CLOEXEC)?;
                let mut exits = self.exits.0.lock().unwrap_or_else(PoisonError::into_inner);
                if exits.codes.contains_key(&pid) {
                    return Ok(None);
                }
                exits.watched.insert(pid, held);
                Ok(Some(end))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The exit code of a process that has ended (128 and the signal's number if it was killed).
    pub(crate) fn exit_code(&self, pid: i32) -> Option<i32> {
        let (exits, _) = &*self.exits;
        exits.lock().unwrap_or_else(PoisonError::into_inner).codes.get(&pid).copied()
    }

    /// Kills every process of the sandbox but this one.
    #[expect(clippy::unused_self, reason = "killing belongs to the processes")]
    pub(crate) fn kill_all(&self) {
        if is_init() {
            #[expect(unsafe_code, reason = "kill(-1) has no safe wrapper")]
            // SAFETY: plain system call without pointers. As PID 1 of a namespace it reaches the processes of that namespace and not this one.
            unsafe {
                libc::kill(-1, libc::SIGKILL);
            }
            return;
        }
        for _ in 0..20 {
            let found = descendants();
            if found.is_empty() {
                return;
            }
            for pid in found {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            std::thread::yield_now();
        }
    }
}

pub(crate) fn is_init() -> bool {
    std::process::id() == 1
}

fn reap(exits: &(Mutex<Exits>, Condvar)) {
    let (exits, woken) = exits;
    let mut known = 0;
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let code = status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                    .unwrap_or(-1);
                let mut exits = exits.lock().unwrap_or_else(PoisonError::into_inner);
                let pid = pid.as_raw_nonzero().get();
                exits.codes.insert(pid, code);
                exits.watched.remove(&pid);
                exits.order.push_back(pid);
                if exits.order.len() > REMEMBERED
                    && let Some(oldest) = exits.order.pop_front()
                {
                    exits.codes.remove(&oldest);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                let mut exits = exits.lock().unwrap_or_else(PoisonError::into_inner);
                while exits.spawned == known {
                    exits = woken.wait(exits).unwrap_or_else(PoisonError::into_inner);
                }
                known = exits.spawned;
            }
        }
    }
}

/// All processes that descend from this one.
fn descendants() -> Vec<i32> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let state = fields.next().unwrap_or_default();
        if let Some(parent) = fields.next().and_then(|parent| parent.parse::<i32>().ok())
            && state != "Z"
        {
            parents.insert(pid, parent);
        }
    }
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let mut found = BTreeSet::from([own]);
    loop {
        let before = found.len();
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            break;
        }
    }
    found.remove(&own);
    found.into_iter().collect()
}
