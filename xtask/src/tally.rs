//! Counts what ran: every suite's own closing lines are shown, and one line at the end adds them up.

use anyhow::Context;
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

/// What ran so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    left_out: Vec<String>,
}

impl Tally {
    /// Runs tests of cargo's.
    pub(crate) fn cargo_test(&mut self, name: &str, command: Command) -> anyhow::Result<()> {
        self.run(name, command, |line| {
            let rest = line.strip_prefix("test result: ")?;
            let (_, counts) = rest.split_once(". ")?;
            Some((number(counts, "passed"), number(counts, "failed")))
        })
    }

    /// Runs a suite, showing its lines and counting by them. A suite that fails without counting a failure counts as one.
    pub(crate) fn run(
        &mut self,
        name: &str,
        mut command: Command,
        count: impl Fn(&str) -> Option<(u64, u64)>,
    ) -> anyhow::Result<()> {
        crate::show(&format!("\n=== {name}\n"));
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let output = child.stdout.take().context("its output is piped")?;
        let failed_before = self.failed;
        for line in BufReader::new(output).lines() {
            let line = line.unwrap_or_default();
            if let Some((passed, failed)) = count(&line) {
                self.passed += passed;
                self.failed += failed;
            }
            crate::show(&format!("{line}\n"));
        }
        if !child.wait()?.success() && self.failed == failed_before {
            self.failed += 1;
        }
        Ok(())
    }

    /// Counts one check by its outcome.
    pub(crate) fn check(&mut self, what: &str, holds: bool) {
        crate::show(&format!("{what}: {}\n", if holds { "ok" } else { "FAILED" }));
        self.passed += u64::from(holds);
        self.failed += u64::from(!holds);
    }

    /// Notes a suite that cannot run here, and why.
    pub(crate) fn leave_out(&mut self, what: String) {
        crate::show(&format!("\n=== left out: {what}\n"));
        self.left_out.push(what);
    }

    /// Says how it went; true if nothing failed.
    pub(crate) fn close(&self) -> bool {
        crate::show("\n");
        for what in &self.left_out {
            crate::show(&format!("left out: {what}\n"));
        }
        crate::show(&format!("{} passed, {} failed\n", self.passed, self.failed));
        self.failed == 0
    }
}

/// The number before `word` in a line such as `3 passed; 1 failed`.
pub(crate) fn number(line: &str, word: &str) -> u64 {
    let words: Vec<&str> =
        line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let found = words.windows(2).find(|pair| pair[1] == word);
    found.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// How many tests passed and failed, by pytest's last line.
pub(crate) fn closing(line: &str) -> Option<(u64, u64)> {
    let last = line.contains(" in ") && (line.contains(" passed") || line.contains(" failed"));
    let failed = ["failed", "error", "errors"].map(|word| number(line, word)).iter().sum();
    last.then(|| (number(line, "passed"), failed))
}
