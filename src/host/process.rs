//! Where a process of ours hangs, for the log.

use std::fs;

/// What the kernel says of a process: its state, what it waits for, and its kernel stack, innermost call first. Each is left out
/// where the kernel does not tell it.
pub fn whereabouts(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).map_or("gone", str::trim).to_owned();
    let wchan = read("wchan");
    let stack: Vec<String> = read("stack").lines().map(|line| line.trim_start_matches("[<0>]").trim().to_owned()).collect();
    let mut told = format!("process {pid} is {state}");
    if !wchan.is_empty() && wchan != "0" {
        told.push_str(&format!(", waiting in {wchan}"));
    }
    if !stack.is_empty() {
        told.push_str(&format!(", kernel stack: {}", stack.join(" < ")));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::whereabouts;

    #[test]
    fn a_process_is_described_and_one_that_is_gone_is_said_to_be() {
        let told = whereabouts(std::process::id());
        assert!(told.contains("R (running)") || told.contains("S (sleeping)"), "{told}");
        assert_eq!(whereabouts(u32::MAX), format!("process {} is gone", u32::MAX));
    }
}
