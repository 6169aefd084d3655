//! What was found, for eyes, programs and pages. Must never measure, and never leave out a row.

use std::fmt;

pub mod json;
pub mod plot;
pub mod tables;

/// A number with as many digits as are worth reading.
pub struct Short(pub f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0.abs() {
            size if size < 9.995 => 2,
            size if size < 99.95 => 1,
            _ => 0,
        };
        let text = format!("{:.digits$}", self.0);
        let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
        write!(f, "{}{rest}", grouped(whole))
    }
}

/// A whole number.
pub fn count(number: u64) -> String {
    grouped(&number.to_string())
}

/// With a comma before every three digits from the end.
fn grouped(whole: &str) -> String {
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut text = sign.to_owned();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_are_worth_reading() {
        for (number, text) in [
            (0.0, "0.00"),
            (1.234, "1.23"),
            (-12.34, "-12.3"),
            (99.96, "100"),
            (-123.4, "-123"),
            (1_234.0, "1,234"),
            (-1_234_567.0, "-1,234,567"),
        ] {
            assert_eq!(Short(number).to_string(), text);
        }
    }
}
