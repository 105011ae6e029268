//! What this process may: limits, and memory of others.

use super::{Finding, root::Root};

/// Locked memory that pools and registrations of a small host take.
const ENOUGH_LOCKED_BYTES: u64 = 1 << 30;
/// A connection and its event for each of a thousand peers, some lanes, and what the engine has open.
const ENOUGH_FILES: u64 = 8192;

/// The soft limit of this process in a line of `/proc/self/limits`; `u64::MAX` is none.
fn limit(root: &Root, name: &str) -> Option<u64> {
    let limits = root.text("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn amount(bytes: u64) -> String {
    match bytes {
        u64::MAX => "no limit".to_owned(),
        bytes => crate::picture::bytes(bytes),
    }
}

pub(super) fn memlock(root: &Root, is_needed: bool) -> Option<Finding> {
    const WHY: &str = "pinned pools and memory that a NIC or GPU reaches are locked";
    let bytes = limit(root, "Max locked memory")?;
    let found = amount(bytes);
    let line = "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/90-moai.conf # containers: --ulimit memlock=-1";
    Some(match (bytes < ENOUGH_LOCKED_BYTES, is_needed) {
        (false, _) => Finding::ok("memlock", found, WHY),
        (true, false) => Finding::note("memlock", found, WHY).mended_by(line),
        (true, true) => Finding::problem("memlock", found, WHY, line),
    })
}

pub(super) fn files(root: &Root) -> Option<Finding> {
    const WHY: &str = "each peer takes a few descriptors, and new peers fail when there are none";
    let files = limit(root, "Max open files")?;
    let found = match files {
        u64::MAX => "no limit".to_owned(),
        files => format!("{files} open files"),
    };
    Some(match files < ENOUGH_FILES {
        false => Finding::ok("files", found, WHY),
        true => Finding::problem(
            "files",
            found,
            WHY,
            "ulimit -n 65536 # containers: --ulimit nofile=65536",
        ),
    })
}

pub(super) fn ptrace(root: &Root) -> Option<Finding> {
    const WHY: &str =
        "processes of one host copy straight from each other's memory only if they may";
    let scope = root.number("/proc/sys/kernel/yama/ptrace_scope");
    let Some(scope) = scope else {
        let has_yama = root.exists("/proc/sys/kernel");
        return has_yama.then(|| Finding::ok("ptrace", "not restricted", WHY));
    };
    let found = format!("kernel.yama.ptrace_scope {scope}");
    Some(match scope {
        0 => Finding::ok("ptrace", found, WHY),
        _ => Finding::note("ptrace", found, WHY)
            .mended_by("sudo sysctl -w kernel.yama.ptrace_scope=0"),
    })
}

pub(super) fn namespace(root: &Root) -> Option<Finding> {
    const WHY: &str =
        "processes in different user namespaces reach neither each other's memory nor devices";
    let map = root.text("/proc/self/uid_map")?;
    let words: Vec<&str> = map.split_whitespace().collect();
    Some(match words.as_slice() {
        ["0", "0", "4294967295"] => Finding::ok("namespace", "the host's users", WHY),
        _ => Finding::note("namespace", "a user namespace", WHY),
    })
}

pub(super) fn seccomp(root: &Root) -> Option<Finding> {
    const WHY: &str =
        "a filter may refuse process_vm_readv, and pages are then sent through shared memory";
    let status = root.text("/proc/self/status")?;
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))?;
    let may_trace = { status.lines() }
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> CAP_SYS_PTRACE & 1 == 1);
    Some(match (mode.trim(), may_trace) {
        ("2", false) => Finding::note("seccomp", "system calls are filtered", WHY)
            .mended_by("docker run --cap-add SYS_PTRACE …"),
        ("2", true) => Finding::ok("seccomp", "filtered, with CAP_SYS_PTRACE", WHY),
        _ => Finding::ok("seccomp", "not filtered", WHY),
    })
}

/// Of `linux/capability.h`.
const CAP_SYS_PTRACE: u32 = 19;

/// Limits of the control group of this process, of either version of them.
pub(super) fn cgroup(root: &Root) -> Vec<Finding> {
    const WHY: &str = "what goes beyond ends the process, or slows it";
    let Some(groups) = root.text("/proc/self/cgroup") else {
        return Vec::new();
    };
    let group_of = |controller: &str| {
        let mut lines = groups.lines().map(|line| line.splitn(3, ':'));
        let found = lines.find_map(|mut parts| {
            let (_, list, path) = (parts.next()?, parts.next()?, parts.next()?);
            list.split(',')
                .any(|name| name == controller)
                .then_some(path)
        });
        found.unwrap_or("/").trim_end_matches('/').to_owned()
    };
    // In a container the group's own path is often not there, and the mount is the group.
    let of = |base: &str, controller: &str, file: &str| {
        let inside = format!("{base}{}/{file}", group_of(controller));
        root.text(&inside)
            .or_else(|| root.text(&format!("{base}/{file}")))
    };
    let limit = |text: Option<String>| {
        let number = text?.parse::<u64>().ok()?;
        // The first version writes no limit as the greatest number of pages.
        (number < 1 << 60).then_some(number)
    };
    let memory = limit(of("/sys/fs/cgroup", "", "memory.max")).or_else(|| {
        limit(of(
            "/sys/fs/cgroup/memory",
            "memory",
            "memory.limit_in_bytes",
        ))
    });
    let mut findings = Vec::new();
    findings.push(match memory {
        Some(bytes) => Finding::note("cgroup", format!("{} of memory", amount(bytes)), WHY),
        None => Finding::ok("cgroup", "memory is not limited", WHY),
    });
    let cpu = of("/sys/fs/cgroup", "", "cpu.max").and_then(|text| {
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok().filter(|&p| p > 0.0)?)
    });
    if let Some(cores) = cpu {
        findings.push(Finding::note("cgroup", format!("{cores:.1} cores"), WHY));
    }
    findings
}
