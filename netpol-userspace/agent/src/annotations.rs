//! What a pod's annotations say of its addresses, as far as the agent was told to believe them: whoever
//! may write pods writes them. Must never believe more than that, nor fail on what is written there.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use netpol_model::{AddressAnnotations, NETWORK_STATUS, SOURCE_PREFIXES};

/// Which annotations of pods count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trust {
    /// Multus' [`NETWORK_STATUS`]: further addresses of the pod.
    pub network_status: bool,
    /// [`SOURCE_PREFIXES`]: what the pod forwards for.
    pub source_prefixes: bool,
}

impl Trust {
    /// Whether any does.
    pub(crate) fn is_some(self) -> bool {
        self.network_status || self.source_prefixes
    }
}

/// What one pod may send from beside the addresses of its status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Annotated {
    /// Blocks that it forwards for, and further addresses of its own. (None of these is itself in
    /// what it sends: whoever may write pods could give it any address to reach.)
    pub(crate) prefixes: Vec<IpNet>,
    /// What could not be read, in sentences.
    pub(crate) problems: Vec<String>,
}

/// So many of each count.
const MOST: usize = 16;

/// The part of an entry of [`NETWORK_STATUS`] that matters here.
#[derive(Deserialize)]
struct Network {
    #[serde(default)]
    ips: Vec<String>,
}

/// Reads them.
pub(crate) fn read(annotations: &AddressAnnotations, trust: Trust) -> Annotated {
    let mut annotated = Annotated::default();
    if let Some(text) = annotations.network_status.as_deref().filter(|_| trust.network_status) {
        match serde_json::from_str::<Vec<Network>>(text) {
            Ok(networks) => {
                let ips = networks.iter().flat_map(|network| &network.ips).map(String::as_str);
                let addresses: Vec<IpAddr> = all(NETWORK_STATUS, ips, &mut annotated.problems);
                annotated.prefixes.extend(addresses.into_iter().map(IpNet::from));
            }
            Err(error) => annotated.problems.push(format!("annotation {NETWORK_STATUS}: {error}")),
        }
    }
    if let Some(text) = annotations.source_prefixes.as_deref().filter(|_| trust.source_prefixes) {
        let is_between = |letter: char| letter == ',' || letter.is_whitespace();
        let words = text.split(is_between).filter(|word| !word.is_empty());
        let blocks: Vec<Block> = all(SOURCE_PREFIXES, words, &mut annotated.problems);
        annotated.prefixes.extend(blocks.into_iter().map(|Block(block)| block));
    }
    annotated
}

/// A block, or an address as one of its own.
#[derive(PartialEq)]
struct Block(IpNet);

impl std::str::FromStr for Block {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let block: Option<IpNet> = text.parse().ok();
        let block = block.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        block.map(|block| Self(block.trunc())).ok_or(())
    }
}

/// The different ones of these words, the first of them.
fn all<'a, T: std::str::FromStr + PartialEq>(
    annotation: &str,
    words: impl Iterator<Item = &'a str>,
    problems: &mut Vec<String>,
) -> Vec<T> {
    let mut values = Vec::new();
    for word in words {
        match word.parse() {
            Ok(value) if values.contains(&value) => {}
            Ok(_) if values.len() == MOST => {
                problems
                    .push(format!("annotation {annotation}: only the first {MOST} of it count"));
                break;
            }
            Ok(value) => values.push(value),
            Err(_) => {
                // Of anybody's text, no more than tells what is meant.
                let word: String = word.chars().take(50).collect();
                problems.push(format!("annotation {annotation}: {word:?} is no address or block"));
                if problems.len() >= MOST {
                    break;
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Trust = Trust { network_status: true, source_prefixes: true };

    fn annotations(network_status: &str, source_prefixes: &str) -> AddressAnnotations {
        AddressAnnotations {
            network_status: Some(network_status.into()),
            source_prefixes: Some(source_prefixes.into()),
        }
    }

    #[test]
    fn addresses_and_blocks_are_read_from_the_forms_that_people_and_multus_write() {
        let status = r#"[{"name": "cbr0", "ips": ["10.0.0.1"], "default": true, "dns": {}},
            {"name": "x/macvlan", "interface": "net1", "ips": ["192.0.2.7", "fd00::7"], "mac": "02:"},
            {"name": "x/none"}]"#;
        let read =
            read(&annotations(status, " 10.8.0.5/16, fd00:8::/64\n192.0.2.9,10.8.0.0/16 "), BOTH);
        let prefixes: Vec<String> = read.prefixes.iter().map(ToString::to_string).collect();
        let addresses = ["10.0.0.1/32", "192.0.2.7/32", "fd00::7/128"];
        assert_eq!(prefixes[..3], addresses);
        assert_eq!(prefixes[3..], ["10.8.0.0/16", "fd00:8::/64", "192.0.2.9/32"]);
        assert_eq!(read.problems, [""; 0]);
    }

    #[test]
    fn only_what_is_trusted_counts() {
        let both = annotations(r#"[{"ips": ["10.0.0.1"]}]"#, "10.8.0.0/16");
        assert_eq!(read(&both, Trust::default()), Annotated::default());
        let one = read(&both, Trust { network_status: true, source_prefixes: false });
        assert_eq!(one.prefixes, ["10.0.0.1/32".parse().expect("a block")]);
        let other = read(&both, Trust { network_status: false, source_prefixes: true });
        assert_eq!(other.prefixes, ["10.8.0.0/16".parse().expect("a block")]);
    }

    #[test]
    fn what_cannot_be_read_is_said_and_costs_nothing_else() {
        let odd = read(&annotations("{", "10.8.0.0/33 all 10.9.0.0/16"), BOTH);
        assert_eq!(odd.prefixes.len(), 1);
        assert_eq!(odd.problems.len(), 3, "{:?}", odd.problems);
        assert!(odd.problems[1].contains("\"10.8.0.0/33\" is no address or block"));
        let many: Vec<String> = (0..40).map(|i| format!("10.{i}.0.0/16")).collect();
        let read = read(&annotations("[]", &many.join(",")), BOTH);
        assert_eq!((read.prefixes.len(), read.problems.len()), (16, 1));
        let read = super::read(&annotations("[]", &"x ".repeat(100_000)), BOTH);
        assert_eq!((read.prefixes.len(), read.problems.len()), (0, 16));
    }
}
