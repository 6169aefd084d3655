//! What an unquoted word of YAML is: the rules of YAML 1.1 as kubectl applies them (the module
//! sigs.k8s.io/yaml of Go, version 1), so that a file means the same to both. Must never make of a
//! word what kubectl makes of none.

use serde_json::{Number, Value};

/// The prefix of the tags that YAML defines.
const TAGS: &str = "tag:yaml.org,2002:";

/// What a word is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// A whole number beyond the signed ones.
    Big(u64),
    Float(f64),
    /// Also a date.
    Text,
}

impl Scalar {
    /// Its name among the tags.
    fn tag(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) => "float",
            Self::Text => "str",
        }
    }
}

/// The value of a scalar. `tag` is its explicit tag, in full.
pub(super) fn value(text: &str, is_plain: bool, tag: Option<&str>) -> Result<Value, String> {
    match resolve(text, is_plain, tag)? {
        Scalar::Null => Ok(Value::Null),
        Scalar::Bool(value) => Ok(value.into()),
        Scalar::Int(value) => Ok(value.into()),
        Scalar::Big(value) => Ok(value.into()),
        Scalar::Float(value) => float(value).ok_or_else(|| {
            format!("{text} is a number that does not exist in JSON (text goes in quotes)")
        }),
        Scalar::Text => Ok(text.into()),
    }
}

/// The key that a scalar is: keys are text, so numbers and booleans become that.
pub(super) fn key(text: &str, is_plain: bool, tag: Option<&str>) -> Result<String, String> {
    match resolve(text, is_plain, tag)? {
        Scalar::Bool(value) => Ok(value.to_string()),
        Scalar::Int(value) => Ok(value.to_string()),
        Scalar::Float(value) => Ok(float_key(value)),
        Scalar::Text => Ok(text.to_owned()),
        Scalar::Null | Scalar::Big(_) => Err(format!("{text:?} cannot be a key")),
    }
}

fn resolve(text: &str, is_plain: bool, tag: Option<&str>) -> Result<Scalar, String> {
    let wanted = match tag {
        None if is_plain => return Ok(untagged(text)),
        None => return Ok(Scalar::Text),
        Some(tag) => tag.strip_prefix(TAGS).unwrap_or("str"),
    };
    let found = match wanted {
        "bool" | "int" | "float" | "null" => untagged(text),
        "binary" => return Err("!!binary is not read here".to_owned()),
        _ => return Ok(Scalar::Text),
    };
    match (wanted, found) {
        #[expect(clippy::cast_precision_loss, reason = "as Go does it")]
        ("float", Scalar::Int(value)) => Ok(Scalar::Float(value as f64)),
        (_, found) if found.tag() == wanted => Ok(found),
        (_, found) => Err(format!("cannot decode !!{} `{text}` as a !!{wanted}", found.tag())),
    }
}

fn untagged(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Scalar::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Scalar::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::Float(f64::NEG_INFINITY),
        _ => {}
    }
    match text.as_bytes().first() {
        Some(b'.') => dotted(text).and_then(|digits| decimal(&digits)).unwrap_or(Scalar::Text),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let plain = text.replace('_', "");
            whole(&plain).or_else(|| decimal(&plain)).unwrap_or(Scalar::Text)
        }
        _ => Scalar::Text,
    }
}

/// A whole number in any base.
fn whole(plain: &str) -> Option<Scalar> {
    let unsigned = plain.strip_prefix(['+', '-']);
    let (radix, digits) = based(unsigned.unwrap_or(plain));
    if digits.starts_with(['+', '-']) {
        // Oddly, `0b-1` is a number.
        let binary = plain.strip_prefix("0b")?;
        return i64::from_str_radix(binary, 2).ok().map(Scalar::Int);
    }
    let sign = if plain.starts_with('-') { "-" } else { "" };
    if let Ok(value) = i64::from_str_radix(&format!("{sign}{digits}"), radix) {
        return Some(Scalar::Int(value));
    }
    let big = unsigned.is_none().then(|| u64::from_str_radix(digits, radix).ok());
    big.flatten().map(Scalar::Big)
}

/// The base of a number without its sign, and its digits.
fn based(number: &str) -> (u32, &str) {
    let bases = [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)];
    for (prefix, radix) in bases {
        if let Some(digits) = number.strip_prefix(prefix) {
            return (radix, digits);
        }
    }
    match number.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => (8, digits),
        _ => (10, number),
    }
}

/// A decimal number with a point, an exponent or too many digits; none if it is out of range, as a
/// commit's short name `4e92276658` is.
fn decimal(plain: &str) -> Option<Scalar> {
    let is_number =
        plain.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    let value: f64 = plain.parse().ok().filter(|_| is_number)?;
    value.is_finite().then_some(Scalar::Float(value))
}

/// A number that starts with its point, without the underscores, which must be between digits.
fn dotted(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_digit);
    let stands_between = |at: usize| {
        is_digit(at.checked_sub(1).and_then(|before| bytes.get(before)))
            && is_digit(bytes.get(at + 1))
    };
    let fine = bytes.iter().enumerate().all(|(at, &byte)| byte != b'_' || stands_between(at));
    fine.then(|| text.replace('_', ""))
}

/// The number as JSON has it: `80.0` and `8e1` are 80, as they are for an API server.
fn float(value: f64) -> Option<Value> {
    #[expect(clippy::cast_possible_truncation, reason = "whole, and within the bounds")]
    let whole = (value.fract() == 0.0 && value.abs() < 9e18).then_some(value as i64);
    match whole {
        Some(whole) => Some(whole.into()),
        None => Number::from_f64(value).map(Value::Number),
    }
}

/// A number as the text of a key: the shortest digits of 32 bits, with an exponent if it is far
/// from zero.
fn float_key(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, reason = "as Go does it")]
    let value = value as f32;
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return value.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests;
