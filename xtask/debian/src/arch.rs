//! The processors that netpol is built for, and what everybody calls them. Pure.

use std::env;
use std::fmt;
use std::str::FromStr;

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's, if it is one of them.
    #[must_use]
    pub fn host() -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.is_host())
    }

    /// Whether it is this machine's.
    #[must_use]
    pub fn is_host(self) -> bool {
        self.machine() == env::consts::ARCH
    }

    /// As Debian, Go and images have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As `uname -m` has it, and QEMU's programs.
    #[must_use]
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// As rustc has it.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As cargo's and the crate cc's variables have it.
    #[must_use]
    pub fn variable(self) -> String {
        self.target().replace('-', "_")
    }

    /// A GNU tool for it on another processor, such as `gcc`.
    #[must_use]
    pub fn tool(self, name: &str) -> String {
        format!("{}-linux-gnu-{name}", self.machine())
    }

    /// Debian's packages of the C compiler for it and of its C library, on another processor. The
    /// first only recommends the second.
    #[must_use]
    pub fn compiler_packages(self) -> [&'static str; 2] {
        match self {
            Self::Amd64 => ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            Self::Arm64 => ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        }
    }

    /// Where the second of these has the C library.
    #[must_use]
    pub fn c_library(self) -> String {
        format!("/usr/{}-linux-gnu/lib/libc.a", self.machine())
    }

    /// The program that is such a machine.
    #[must_use]
    pub fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Debian's package of that.
    #[must_use]
    pub fn emulator_package(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86",
            Self::Arm64 => "qemu-system-arm",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_it = |arch: &Self| [arch.name(), arch.machine(), arch.target()].contains(&text);
        Self::ALL
            .into_iter()
            .find(is_it)
            .ok_or_else(|| "netpol is built for amd64 (x86_64) and arm64 (aarch64)".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_known_by_all_its_names() {
        for arch in Arch::ALL {
            for name in [arch.name(), arch.machine(), arch.target()] {
                assert_eq!(name.parse(), Ok(arch));
            }
            assert!(arch.target().starts_with(arch.machine()));
        }
        assert!("arm".parse::<Arch>().is_err_and(|error| error.contains("aarch64")));
        assert_eq!(Arch::Arm64.tool("gcc"), "aarch64-linux-gnu-gcc");
        assert_eq!(Arch::Amd64.variable(), "x86_64_unknown_linux_gnu");
    }
}
