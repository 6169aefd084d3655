//! Where something was measured: figures of one machine mean nothing on another. Must never guess:
//! what cannot be read is not told.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// What a reader of figures must know of the machine.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// As the processor calls itself.
    pub cpu: Option<String>,
    /// Processors that this process may use.
    pub cpus: Option<usize>,
    /// Whether eBPF programs are translated to machine code.
    pub is_jit_on: Option<bool>,
    /// Load averages when the run began.
    pub load: Option<String>,
    /// When the run began, in UTC.
    pub date: String,
    /// The commit, with `-dirty` if there are changes on top of it.
    pub commit: Option<String>,
}

impl Machine {
    /// This one, now.
    pub fn read() -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_in(&text)),
            cpus: std::thread::available_parallelism().ok().map(usize::from),
            is_jit_on: word_of("/proc/sys/net/core/bpf_jit_enable").map(|word| word != "0"),
            load: fs::read_to_string("/proc/loadavg").ok().and_then(|text| loads_in(&text)),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            commit: commit(),
        }
    }

    /// All of it in one line.
    pub fn line(&self) -> String {
        let told = |name: &str, value: Option<String>| value.map(|value| format!("{name}{value}"));
        let jit = self.is_jit_on.map(|is_on| if is_on { "on" } else { "OFF" }.to_owned());
        let parts = [
            Some(format!("Linux {}", self.kernel)),
            self.cpu.clone(),
            self.cpus.map(|count| format!("{count} CPUs")),
            told("BPF JIT ", jit),
            told("load ", self.load.clone()),
            Some(self.date.clone()),
            told("commit ", self.commit.clone()),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

fn word_of(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The name of the first processor in the text of /proc/cpuinfo.
fn cpu_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The three averages in the text of /proc/loadavg.
fn loads_in(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().take(3).collect();
    (words.len() == 3).then(|| words.join(" "))
}

fn commit() -> Option<String> {
    let mut git = Command::new("git");
    // The checkout may be somebody else's, as under sudo.
    git.args(["-c", "safe.directory=*", "-C", env!("CARGO_MANIFEST_DIR")]);
    git.args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_told() {
        assert_eq!(
            cpu_in("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n").as_deref(),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(cpu_in("processor : 0\n"), None);
        assert_eq!(loads_in("0.10 0.20 0.30 1/200 4711\n").as_deref(), Some("0.10 0.20 0.30"));
        assert_eq!(loads_in("0.10"), None);
        let machine = Machine { kernel: "6.12".into(), date: "today".into(), ..Machine::default() };
        assert_eq!(machine.line(), "Linux 6.12, today");
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let line = Machine::read().line();
        assert!(line.contains("Linux ") && line.contains(" CPUs"), "{line}");
    }
}
