//! Pages of memory, and memory that is shared.

use super::{Finding, root::Root};

/// Below it engines that keep tensors there stop; the default of containers is 64 MiB.
const ENOUGH_SHM_BYTES: u64 = 1 << 30;

pub(super) fn huge_pages(root: &Root) -> Option<Finding> {
    const WHY: &str = "pools of many GiB miss the table of pages less";
    // `always [madvise] never`.
    let modes = root.text("/sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = modes
        .as_deref()
        .and_then(|modes| modes.split_once('[')?.1.split_once(']'));
    let reserved = root.text("/proc/meminfo").and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("HugePages_Total:"))?;
        line.trim().parse::<u64>().ok()
    });
    let reserved = match reserved {
        Some(pages) if pages > 0 => format!(", {pages} reserved"),
        _ => String::new(),
    };
    let (mode, _) = chosen?;
    let found = format!("transparent: {mode}{reserved}");
    Some(match mode {
        "never" => Finding::note("hugepages", found, WHY)
            .mended_by("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"),
        _ => Finding::ok("hugepages", found, WHY),
    })
}

pub(super) fn shm(root: &Root) -> Option<Finding> {
    const WHY: &str = "engines and their libraries keep tensors there; pools of this one do not";
    let mounts = root.text("/proc/mounts")?;
    let options = mounts.lines().rev().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (*words.get(1)? == "/dev/shm").then(|| words.get(3).copied().unwrap_or_default().to_owned())
    })?;
    let size = options
        .split(',')
        .find_map(|option| option.strip_prefix("size="));
    // Without the option it is half of the memory.
    let Some(bytes) = size.and_then(bytes) else {
        return Some(Finding::ok("shm", "/dev/shm has half of the memory", WHY));
    };
    let found = format!("/dev/shm has {}", crate::picture::bytes(bytes));
    Some(match bytes < ENOUGH_SHM_BYTES {
        false => Finding::ok("shm", found, WHY),
        true => Finding::note("shm", found, WHY)
            .mended_by("sudo mount -o remount,size=16G /dev/shm # containers: --shm-size 16g"),
    })
}

/// `65536k` and its like.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['k', 'm', 'g']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
