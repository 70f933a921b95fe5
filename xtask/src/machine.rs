//! What a run cost the whole machine.
//!
//! A tunnel's work is spread over system calls, soft interrupts and kernel threads, so a process' own CPU time tells
//! a fraction of it. `/proc/stat` tells all of it, the load tool's share included, which is the same for every subject.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// CPU time the whole machine has spent since it started, idle time and time stolen by a hypervisor left out.
pub fn cpu_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal …; guest time is part of user time already.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&field| ticks.get(field)).sum();
    Ok(Duration::from_secs_f64(busy as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU time a process has had, in user mode and in the kernel, all its threads together.
pub fn process_cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The second field is the program's name in parentheses, which may hold anything; utime and stime are 14 and 15.
    let (_, fields) = stat.rsplit_once(')').context("odd process status")?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(Duration::from_secs_f64(ticks.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The resident memory of a process in bytes, from `/proc/<pid>/status`.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS line: a process that ended")?;
    let kib: u64 = line.split_whitespace().nth(1).and_then(|field| field.parse().ok()).context("odd VmRSS line")?;
    Ok(kib * 1024)
}

/// How many times slower than real hardware this machine is: `cargo xtask vm` says so to what runs under emulation, by
/// `NETFWD_SLOWNESS`. 1 anywhere else.
pub fn slowness() -> f64 {
    let told = std::env::var("NETFWD_SLOWNESS").ok().and_then(|text| text.parse().ok());
    told.filter(|slowness| *slowness >= 1.0).unwrap_or(1.0)
}

/// Asks every 10 ms until `condition` holds; false when it did not within `timeout`, as real hardware counts both.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout.mul_f64(slowness());
    let pause = Duration::from_millis(10).mul_f64(slowness());
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_never_runs_backwards() {
        let before = cpu_time().unwrap();
        assert!(cpu_time().unwrap() >= before);
    }

    #[test]
    fn busy_threads_count_as_their_process() {
        let spin = || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(200) {}
        };
        let before = process_cpu_time(std::process::id()).unwrap();
        std::thread::spawn(spin).join().unwrap();
        assert!(process_cpu_time(std::process::id()).unwrap() > before);
    }

    #[test]
    fn this_process_is_resident() {
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
    }
}
