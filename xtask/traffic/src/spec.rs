//! What a flow shall send, as given on the command line.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};

/// How messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One connection for all; a new one when it breaks.
    TcpStream,
    /// One socket for all.
    UdpStream,
    /// A connection for each message.
    TcpConnect,
    /// A socket for each message.
    UdpConnect,
    /// No message, but the target's name looked up.
    Resolve,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub kind: Kind,
    /// Host and port.
    pub to: String,
    /// Time between two messages.
    pub period: Duration,
    /// Without end if `None`.
    pub count: Option<u64>,
    /// How long an answer may take to count: less where it is denied, by a name that starts `no-`.
    pub timeout: Duration,
}

/// What to send back to whoever sends a first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallBack {
    /// The flow that it counts in.
    pub name: String,
    pub port: u16,
}

impl FromStr for CallBack {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, port) = text.split_once('=').context("it is NAME=PORT")?;
        Ok(Self { name: name.to_owned(), port: port.parse()? })
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut name, mut kind, mut to) = (None, None, None);
        let (mut rate, mut count, mut timeout) = (20.0, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').context("parts are key=value")?;
            match key {
                "name" => name = Some(value.to_owned()),
                "kind" => kind = Some(parse_kind(value)?),
                "to" => to = Some(value.to_owned()),
                "rate" => rate = value.parse::<f64>()?,
                "count" => count = Some(value.parse()?),
                "timeout" => timeout = Some(Duration::from_millis(value.parse()?)),
                _ => bail!("unknown key {key}"),
            }
        }
        let period = Duration::try_from_secs_f64(1.0 / rate).context("rate is per second")?;
        let name: String = name.context("name=... is missing")?;
        // What is allowed is lost only if it never comes, however busy the machine is; what is
        // denied would come at once.
        let patience = Duration::from_secs(if name.starts_with("no-") { 3 } else { 20 });
        Ok(Self {
            name,
            kind: kind.context("kind=... is missing")?,
            to: to.context("to=HOST:PORT is missing")?,
            period,
            count,
            timeout: timeout.unwrap_or(patience),
        })
    }
}

fn parse_kind(text: &str) -> Result<Kind> {
    Ok(match text {
        "tcp-stream" => Kind::TcpStream,
        "udp-stream" => Kind::UdpStream,
        "tcp-connect" => Kind::TcpConnect,
        "udp-connect" => Kind::UdpConnect,
        "resolve" => Kind::Resolve,
        _ => bail!("unknown kind {text}"),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn flows_are_read() {
        let spec: Spec =
            "name=a,kind=udp-stream,to=[fd00::1]:80,rate=4,count=7,timeout=250".parse().unwrap();
        assert_eq!((spec.kind, spec.to.as_str()), (Kind::UdpStream, "[fd00::1]:80"));
        assert_eq!(spec.period, Duration::from_millis(250));
        assert_eq!((spec.count, spec.timeout), (Some(7), Duration::from_millis(250)));
        let patience = |name: &str| {
            format!("name={name},kind=resolve,to=b").parse::<Spec>().unwrap().timeout.as_secs()
        };
        assert_eq!((patience("ok-a"), patience("no-a")), (20, 3));
        for wrong in ["", "name=a", "name=a,kind=x,to=b:1", "name=a,kind=resolve,to=b,rate=0"] {
            wrong.parse::<Spec>().unwrap_err();
        }
    }
}
