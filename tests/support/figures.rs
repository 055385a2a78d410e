//! Numbers of many rounds.

use std::fs;
use std::time::{Duration, Instant};

/// The middle one.
pub fn median(numbers: &[f64]) -> f64 {
    percentile(numbers, 50)
}

/// The number that so many of a hundred do not pass; nothing of no numbers.
pub fn percentile(numbers: &[f64], of_a_hundred: usize) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * of_a_hundred / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

/// Milliseconds of some work.
pub fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    milliseconds(started.elapsed())
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory, in MiB.
    pub memory: f64,
    /// Open file handles.
    pub handles: usize,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process's status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let kibibytes: f64 = resident.and_then(|number| number.parse().ok()).expect("VmRSS");
        let handles = fs::read_dir(format!("/proc/{pid}/fd")).expect("its handles").count();
        Self { memory: kibibytes / 1024.0, handles }
    }
}

/// What the figures were taken on.
pub fn machine() -> String {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':').map(|(_, value)| value));
        value.unwrap_or("unknown").trim().to_owned()
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let gibibytes = memory.trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0 / 1024.0;
    format!(
        "{} cores of {}, {gibibytes:.1} GiB of memory, Linux {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        field(&read("/proc/cpuinfo"), "model name"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// How busy the machine is beside: the load of the last minute.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("unknown").to_owned()
}
