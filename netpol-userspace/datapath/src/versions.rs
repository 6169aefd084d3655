//! Ends what an agent of another map layout has left, once this one enforces everything itself:
//! two layouts share no map, so until then both judge, and nothing passes that only one denies.

use std::fs;

use aya::programs::links::{FdLink, PinnedLink};

use super::error::DatapathError;
use super::pins::Pins;
use super::tcx::detach_now;

/// Takes off the programs that layout versions other than that of `pins` have on interfaces, and
/// removes what they have pinned. One whose agent still runs is left alone.
pub(crate) fn retire_other_versions(pins: &Pins) -> Result<(), DatapathError> {
    for other in pins.of_other_versions()? {
        let _lock = match other.lock() {
            Ok(lock) => lock,
            Err(error) => {
                tracing::warn!(%error, "an agent of another version still enforces as well");
                continue;
            }
        };
        detach_all(&other);
        let pins = other.remove()?;
        tracing::info!(pins, "took over from another version, and removed what it had pinned");
    }
    Ok(())
}

fn detach_all(pins: &Pins) {
    for entry in fs::read_dir(pins.links()).into_iter().flatten().flatten() {
        if let Ok(pinned) = PinnedLink::from_pin(entry.path()) {
            detach_now(FdLink::from(pinned));
        }
    }
}
