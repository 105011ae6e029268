//! Which machine and which build a figure comes from. What cannot be read is `unknown`.

use std::{fs, path::Path, process, thread};

use serde::Serialize;

/// The machine and the build.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fingerprint {
    /// Always `machine`: which kind of JSON line this is.
    pub(crate) kind: &'static str,
    /// Model name of the processor.
    pub(crate) cpu: String,
    /// Processors that this process may run on.
    pub(crate) cores: usize,
    /// Whether a hypervisor is below, whose other guests nobody sees.
    pub(crate) is_virtual: bool,
    /// Frequency governor of the first processor.
    pub(crate) governor: String,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub(crate) huge_pages: String,
    /// Version of the kernel.
    pub(crate) kernel: String,
    /// Instruction sets that the loops look for, of those that are there.
    pub(crate) features: Vec<&'static str>,
    /// Version of this program.
    pub(crate) version: &'static str,
    /// Commit of the sources it was built from, as they are now; `-dirty` if they were changed.
    pub(crate) commit: String,
    /// `release` or `debug`.
    pub(crate) build: &'static str,
}

const UNKNOWN: &str = "unknown";

impl Fingerprint {
    /// Looks around.
    pub(crate) fn take() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let read = |path: &str| {
            let text = fs::read_to_string(path).ok()?;
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        Self {
            kind: "machine",
            cpu: or_unknown(field(&cpuinfo, "model name").map(str::to_owned)),
            cores: thread::available_parallelism().map_or(0, Into::into),
            is_virtual: flags.split_whitespace().any(|flag| flag == "hypervisor"),
            governor: or_unknown(read(
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            )),
            huge_pages: or_unknown(
                read("/sys/kernel/mm/transparent_hugepage/enabled")
                    .as_deref()
                    .and_then(chosen)
                    .map(str::to_owned),
            ),
            kernel: or_unknown(read("/proc/sys/kernel/osrelease")),
            features: features(),
            version: env!("CARGO_PKG_VERSION"),
            commit: or_unknown(commit(Path::new(env!("CARGO_MANIFEST_DIR")))),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
        }
    }

    /// The same, for people.
    pub(crate) fn lines(&self) -> String {
        let cores = match (self.cores, self.is_virtual) {
            (n, true) => format!("{n} virtual cores"),
            (n, false) => format!("{n} cores"),
        };
        format!(
            "machine  {}, {cores}, governor {}, huge pages {}, Linux {}\n\
             simd     {}\n\
             build    moai-perf {}, {}, commit {}\n",
            self.cpu,
            self.governor,
            self.huge_pages,
            self.kernel,
            self.features.join(" "),
            self.version,
            self.build,
            self.commit,
        )
    }
}

/// The first value of a field in `/proc/cpuinfo`.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut values = fields.filter(|(key, _)| key.trim() == name);
    values.next().map(|(_, value)| value.trim())
}

/// The choice in brackets, as the kernel writes its settings.
fn chosen(setting: &str) -> Option<&str> {
    setting
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(chosen, _)| chosen)
}

/// The commit of the sources, where they and git are still there.
fn commit(sources: &Path) -> Option<String> {
    let done = process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        // Tags would hide the commit.
        .args(["--exclude", "*"])
        .current_dir(sources)
        .output()
        .ok()?;
    let text = String::from_utf8(done.stdout).ok()?;
    let text = text.trim();
    (done.status.success() && !text.is_empty()).then(|| text.to_owned())
}

fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        (
            "avx512vbmi",
            std::arch::is_x86_feature_detected!("avx512vbmi"),
        ),
        (
            "avx512bf16",
            std::arch::is_x86_feature_detected!("avx512bf16"),
        ),
    ];
    #[cfg(target_arch = "aarch64")]
    let found = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found: [(&'static str, bool); 0] = [];
    let there = found.into_iter().filter(|(_, there)| *there);
    there.map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_choices_are_found() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: v2\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(text, "model name"), Some("Some CPU: v2"));
        assert_eq!(field(text, "governor"), None);
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }

    #[test]
    fn every_line_says_something_wherever_this_runs() {
        let taken = Fingerprint::take();
        assert!(taken.cores > 0);
        for line in taken.lines().lines() {
            assert!(line.split_whitespace().count() >= 2, "{line:?}");
        }
        // A folder without git is no error.
        assert_eq!(commit(Path::new("/proc")), None);
    }
}
