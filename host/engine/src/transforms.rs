//! Transforms: the engine keeps with an entry which plugins have replaced its value, and lets them turn it back for everything
//! that returns the value to a client or a plugin. Hooks, and the files of the store, have the stored form.

use std::sync::Arc;

use super::{ExtraHeaders, check_memory, view};
use vkog_plugin_host::{Chain, OpContext, Refusal, Transforms};
use vkog_store::Entry;

/// The form in which values are returned.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As clients sent them.
    #[default]
    Sent,
    /// As they are stored: for operations that show neither values nor their sizes.
    Stored,
}

/// Stored values longer than this are not turned back on an event loop, in bytes.
pub(super) const LARGE: usize = 64 << 10;

/// Whether a value has to be turned back before it is returned.
#[inline]
pub(super) fn is_transformed(entry: &Entry) -> bool {
    Transforms::are_in(entry.details())
}

/// Returns an entry with the value as it was sent, and the headers that its plugins add to the response; none if no plugin has
/// transformed it. Calls hooks, so the caller holds no lock.
pub(super) fn sent(
    chain: &Arc<Chain>,
    context: &OpContext<'_>,
    entry: &Entry,
) -> Result<Option<(Entry, ExtraHeaders)>, Refusal> {
    let Some(read) = chain.read(context, view(entry))? else { return Ok(None) };
    check_memory(read.value.len())?;
    let content_type = read.content_type.as_deref().unwrap_or(entry.content_type());
    Ok(Some((entry.with_value(&read.value, content_type), read.headers)))
}
