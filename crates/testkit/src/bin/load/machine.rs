//! What the machine and a process say of themselves.

use anyhow::Context;
use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

/// Times that were taken.
#[derive(Debug, Default)]
pub(crate) struct Times(pub(crate) Vec<Duration>);

impl Times {
    fn at(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((self.0.len() as f64 - 1.0) * share).round() as usize;
        self.0.get(index).copied().unwrap_or_default()
    }

    /// The median.
    pub(crate) fn median(&mut self) -> Duration {
        self.at(0.5)
    }

    /// Median, 99th percentile and count.
    pub(crate) fn line(&mut self) -> String {
        format!("p50 {:.2?}, p99 {:.2?} ({} times)", self.at(0.5), self.at(0.99), self.0.len())
    }
}

/// Processors and kernel.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, Linux {}", kernel.trim())
}

/// How long the disk under the temporary directory takes to make 4 KiB durable.
pub(crate) fn fdatasync(count: usize) -> anyhow::Result<Times> {
    let mut file = tempfile::tempfile()?;
    let mut times = Times::default();
    for _ in 0..count {
        let started = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.0.push(started.elapsed());
    }
    Ok(times)
}

/// A thousand streams are two thousand descriptors here.
pub(crate) fn allow_many_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Processor time a process has used.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("a stat line")?.split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = (ticks(12).context("utime")?, ticks(13).context("stime")?);
    Ok(Duration::from_millis((user + system) * 10))
}

/// Resident memory of a process, in bytes, without what it shares with others.
pub(crate) fn memory(pid: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("a Pss line")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib << 10)
}

/// Bytes as megabytes.
#[expect(clippy::cast_precision_loss, reason = "for display")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
