//! `netpol capabilities`.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use anyhow::Result;

use super::output::{self, Format};
use netpol_datapath::features::{self, Capabilities, Feature};

/// Say whether netpol works on this machine's kernel, before installing it
///
/// Asks the kernel itself, by trying: for each feature that netpol rests on, and by loading its
/// programs, which are gone again at the end. Names what is missing and what that means. Needs root
/// and no agent, changes nothing, and disturbs no agent that runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol capabilities
  netpol capabilities -o json | jq -e .supported

Exit codes: 0 netpol works here, 1 it does not, 2 this process may not ask.")]
pub struct Args {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows it; true if netpol works here.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let capabilities = features::capabilities()?;
    output::show(out, args.output, &capabilities, text)?;
    Ok(capabilities.supported)
}

fn text(capabilities: &Capabilities) -> String {
    let Capabilities { kernel, reason, features, programs, .. } = capabilities;
    let mut text = match reason {
        None => {
            let style: Style = AnsiColor::Green.on_default();
            format!("{style}netpol works here{style:#} (Linux {kernel})\n")
        }
        Some(reason) => {
            let style: Style = AnsiColor::Red.on_default();
            format!("{style}netpol does not work here{style:#}: {reason}\n")
        }
    };
    text += &output::table(
        ["FEATURE", "HERE", "WHAT IT IS"],
        features.iter().map(|feature| {
            [feature.name.to_owned(), here(feature).to_owned(), feature.what.to_owned()]
        }),
    );
    for feature in features.iter().filter(|feature| !feature.present) {
        text += &format!("without {}: {}\n", feature.name, feature.without);
    }
    if !programs.is_empty() {
        text += &output::table(
            ["PROGRAM", "VERIFIED", "LOADED IN", "MACHINE CODE"],
            programs.iter().map(|program| {
                let verdict = match &program.refused {
                    Some(_) => "refused".to_owned(),
                    None => format!("{} instructions", program.verified_instructions),
                };
                let code = match program.jitted_bytes {
                    0 => "none: the kernel interprets it, many times as slow".to_owned(),
                    bytes => format!("{bytes} bytes"),
                };
                let time = format!("{:.0} ms", program.load_ms);
                [program.name.to_owned(), verdict, time, code]
            }),
        );
    }
    text
}

fn here(feature: &Feature) -> &'static str {
    match (feature.present, feature.required) {
        (true, _) => "yes",
        (false, true) => "no, needed",
        (false, false) => "no",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(capabilities: &Capabilities) -> String {
        anstream::adapter::strip_str(&text(capabilities)).to_string()
    }

    #[test]
    fn what_is_missing_is_named_with_what_it_means() {
        let feature = Feature {
            name: "tcx",
            present: false,
            required: false,
            what: "pinned links (Linux 6.6)",
            without: "programs are filters",
        };
        let mut capabilities = Capabilities {
            kernel: "6.1.0".into(),
            supported: true,
            reason: None,
            features: vec![feature],
            programs: Vec::new(),
        };
        let said = plain(&capabilities);
        assert!(said.starts_with("netpol works here (Linux 6.1.0)\n"), "{said}");
        assert!(said.contains("without tcx: programs are filters\n"), "{said}");
        capabilities.reason = Some("this kernel lacks it".into());
        let said = plain(&capabilities);
        assert!(said.starts_with("netpol does not work here: this kernel lacks it\n"), "{said}");
    }
}
