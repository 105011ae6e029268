//! The kernel, its clock, and libraries.

use super::{Finding, root::Root};

/// Below it some of what is used is missing: memfds that are sealed as a whole, pidfds.
const OLDEST: [u32; 2] = [5, 10];
/// With exports of a GPU's memory to NICs.
const WITH_DMA_BUF: [u32; 2] = [5, 12];

pub(super) fn kernel(root: &Root) -> Option<Finding> {
    const WHY: &str = "5.12 and later lets NICs reach GPUs' memory by dma-buf";
    let release = root.text("/proc/sys/kernel/osrelease")?;
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = [numbers.next()?, numbers.next()?];
    let found = format!("Linux {release}");
    Some(match version {
        version if version < OLDEST => {
            Finding::problem("kernel", found, WHY, "sudo apt-get dist-upgrade")
        }
        version if version < WITH_DMA_BUF => Finding::note("kernel", found, WHY),
        _ => Finding::ok("kernel", found, WHY),
    })
}

pub(super) fn clock(root: &Root) -> Option<Finding> {
    const WHY: &str = "deadlines and heartbeats read it often, and some take microseconds";
    let folder = "/sys/devices/system/clocksource/clocksource0";
    let current = root.text(&format!("{folder}/current_clocksource"))?;
    let is_slow = ["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(&current.as_str());
    let has_tsc = { root.text(&format!("{folder}/available_clocksource")) }
        .is_some_and(|list| list.split_whitespace().any(|name| name == "tsc"));
    Some(match (is_slow, has_tsc) {
        (false, _) => Finding::ok("clock", current, WHY),
        (true, true) => Finding::note("clock", current, WHY)
            .mended_by(format!("echo tsc | sudo tee {folder}/current_clocksource")),
        (true, false) => Finding::note("clock", current, WHY),
    })
}

/// What is opened at run time, and what for.
const LIBRARIES: [(&str, &str); 5] = [
    ("libfabric.so", "EFA and other NICs are reached through it"),
    (
        "libibverbs.so",
        "InfiniBand and RoCE are reached through it",
    ),
    ("libucp.so", "UCX is reached through it"),
    ("libcuda.so", "NVIDIA GPUs are reached through it"),
    ("libamdhip64.so", "AMD GPUs are reached through it"),
];

/// Libraries that the loader would find; none is loaded.
pub(super) fn libraries(root: &Root) -> Vec<Finding> {
    let Some(cache) = root.bytes("/etc/ld.so.cache") else {
        return Vec::new();
    };
    // Names and paths are among the cache's bytes, each ended by a zero.
    let texts: Vec<&str> = cache
        .split(|&byte| byte == 0)
        .filter_map(|text| str::from_utf8(text).ok())
        .collect();
    let one = |(name, why): (&str, &'static str)| {
        let named = |path: &str| {
            path.rsplit_once('/').is_some_and(|(_, file)| {
                file.strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let what = name.trim_end_matches(".so");
        match texts
            .iter()
            .find(|path| path.starts_with('/') && named(path))
        {
            Some(path) => {
                // Links end at a name with the whole version.
                let last = root.leads_to(path).unwrap_or_else(|| (*path).to_owned());
                let version = last.rsplit_once(".so.").map_or("", |(_, version)| version);
                Finding::ok(what, format!("{path} {version}").trim_end(), why)
            }
            None => Finding::note(what, "not there", why),
        }
    };
    LIBRARIES.into_iter().map(one).collect()
}
