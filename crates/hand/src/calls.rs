//! The calls of a generation: each runs at most once, its result is kept until the server has it, and asking again never starts it again.

use crate::{
    exec::{self, EXEC},
    processes::Processes,
    protocol::{INTERRUPTED, Outcome, RefusalCode, Reply, State, ToolResult},
    serve::refuse,
    shell::Shell,
    tools::{self, Places},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Most calls at once.
const RUNNING_MAX: usize = 64;
/// Most acknowledged calls that are remembered.
const ACKED_MAX: usize = 10_000;

/// Who waits for an answer.
pub(crate) struct Waiter {
    pub(crate) id: u64,
    pub(crate) writer: Arc<Mutex<UnixStream>>,
}

enum Entry {
    Running(Vec<Waiter>),
    Finished(ToolResult),
    Acked,
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    acked: VecDeque<String>,
    running: usize,
}

pub(crate) struct Calls {
    table: Arc<Mutex<Table>>,
    shell: Shell,
    places: Places,
    processes: Processes,
}

impl Calls {
    pub(crate) fn new(places: Places, processes: Processes) -> Self {
        let shell = Shell::new(places.clone(), processes.clone());
        Self { table: Arc::default(), shell, places, processes }
    }

    /// Variables of every command from the next one on.
    pub(crate) fn set_variables(&self, variables: BTreeMap<String, String>) {
        self.shell.set_variables(variables);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call, or joins those who wait for it.
    pub(crate) fn run(
        &self,
        call: String,
        tool: String,
        input: Value,
        timeout: Option<Duration>,
        waiter: Waiter,
    ) {
        let mut table = self.table();
        let full = table.running >= RUNNING_MAX;
        match table.entries.get_mut(&call) {
            Some(Entry::Running(waiters)) => waiters.push(waiter),
            Some(Entry::Finished(result)) => {
                let result = result.clone();
                drop(table);
                waiter.answer(Outcome::Ok(Reply::Run { result }));
            }
            Some(Entry::Acked) => {
                drop(table);
                waiter.answer(refuse(
                    RefusalCode::Acked,
                    "the call was acknowledged; its result is gone",
                ));
            }
            None if full => {
                drop(table);
                waiter.answer(refuse(RefusalCode::BadRequest, "too many calls at once"));
            }
            None => {
                table.entries.insert(call.clone(), Entry::Running(vec![waiter]));
                table.running += 1;
                drop(table);
                self.start(call, tool, input, timeout);
            }
        }
    }

    fn start(&self, call: String, tool: String, input: Value, timeout: Option<Duration>) {
        let (table, shell) = (Arc::clone(&self.table), self.shell.clone());
        let (places, processes) = (self.places.clone(), self.processes.clone());
        let name = call.clone();
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(|| match tool.as_str() {
                "bash" => shell.run(&name, &input, timeout),
                EXEC => exec::run(&places, &processes, &name, &input, timeout),
                _ => tools::run(&places, &name, &tool, &input),
            }));
            let result = result.unwrap_or_else(|_| {
                ToolResult::error(format!("{tool}: failed inside the sandbox"))
            });
            finish(&table, &name, result);
        };
        if std::thread::Builder::new().name("call".to_owned()).spawn(work).is_err() {
            let result = ToolResult::error("the sandbox has no room for another thread");
            finish(&self.table, &call, result);
        }
    }

    pub(crate) fn status(&self, call: &str) -> (State, Option<ToolResult>) {
        match self.table().entries.get(call) {
            None => (State::Unknown, None),
            Some(Entry::Running(_)) => (State::Running, None),
            Some(Entry::Finished(result)) => (State::Finished, Some(result.clone())),
            Some(Entry::Acked) => (State::Finished, None),
        }
    }

    pub(crate) fn ack(&self, call: &str) {
        let mut table = self.table();
        if let Some(entry) = table.entries.get_mut(call)
            && matches!(entry, Entry::Finished(_))
        {
            *entry = Entry::Acked;
            table.acked.push_back(call.to_owned());
        }
        while table.acked.len() > ACKED_MAX {
            if let Some(oldest) = table.acked.pop_front() {
                table.entries.remove(&oldest);
            }
        }
    }

    /// Stops a running call, and with it everything else that runs in the sandbox.
    pub(crate) fn cancel(&self, call: &str) {
        if !matches!(self.table().entries.get(call), Some(Entry::Running(_))) {
            return;
        }
        if !self.shell.cancel(call) {
            self.processes.kill_all();
        }
        finish(&self.table, call, ToolResult::error(INTERRUPTED));
    }
}

/// Records a result, the first one only, and tells those who wait.
fn finish(table: &Mutex<Table>, call: &str, result: ToolResult) {
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(entry) = table.entries.get_mut(call) else { return };
    if !matches!(entry, Entry::Running(_)) {
        return;
    }
    let before = std::mem::replace(entry, Entry::Finished(result.clone()));
    table.running -= 1;
    drop(table);
    if let Entry::Running(waiters) = before {
        for waiter in waiters {
            waiter.answer(Outcome::Ok(Reply::Run { result: result.clone() }));
        }
    }
}
