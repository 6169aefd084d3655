//! A few addresses: nearly always one, which takes no memory of its own then. Pure.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

/// Addresses in the order in which they were given.
#[derive(Clone)]
pub struct Addresses(Kept);

#[derive(Clone)]
enum Kept {
    One(IpAddr),
    Others(Box<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Kept::One(address) => std::slice::from_ref(address),
            Kept::Others(addresses) => addresses,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        match addresses.as_slice() {
            &[one] => Self(Kept::One(one)),
            _ => Self(Kept::Others(addresses.into())),
        }
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        addresses.into_iter().collect::<Vec<_>>().into()
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a IpAddr;
    type IntoIter = std::slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Addresses {
    type Item = IpAddr;
    type IntoIter = std::vec::IntoIter<IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        match self.0 {
            Kept::One(address) => vec![address].into_iter(),
            Kept::Others(addresses) => addresses.into_vec().into_iter(),
        }
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self(Kept::Others(Box::default()))
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Addresses {}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_are_those_that_were_given() {
        let given: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        for n in 0..=2 {
            let addresses = Addresses::from(given[..n].to_vec());
            assert_eq!(*addresses, given[..n]);
            assert_eq!(addresses, given[..n].iter().copied().collect());
            assert_eq!(addresses == Addresses::default(), n == 0);
        }
        assert_eq!(size_of::<Addresses>(), size_of::<Vec<IpAddr>>());
    }
}
