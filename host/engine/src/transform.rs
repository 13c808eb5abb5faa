//! Values that plugins store in another form than the client sent.

use std::sync::Arc;

use vkog_plugin_host::{Chain, OpContext, Refusal};
use vkog_store::Entry;

/// Returns an entry with its value as the client sent it.
///
/// # Errors
///
/// A plugin that has transformed the value is not available.
#[inline]
pub(super) fn read_back(_chain: &Arc<Chain>, entry: Entry) -> Result<Entry, Refusal> {
    Ok(entry)
}

/// Whether a plugin has transformed the value of a write, so that its guards must not replace it.
#[inline]
pub(super) fn is_transformed(_context: &OpContext<'_>) -> bool {
    false
}
