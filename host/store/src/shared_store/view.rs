//! Views of a shared store.

use std::sync::Arc;

use crate::map::Map;
use crate::view::{Unviewable, View, Viewed};

use super::SharedStore;
use super::state::State;

impl Viewed for State {
    fn map(&self) -> &Map {
        &self.map
    }
}

impl SharedStore {
    /// Begins a view of all entries as they are at one revision, which later changes do not change.
    ///
    /// # Errors
    ///
    /// Another view is being read.
    pub fn view(&self) -> Result<View, Unviewable> {
        let state = Arc::<State>::clone(&self.state);
        View::new(state, self.state.options.history_max, |view| {
            let _applying = self.state.applying.lock();
            let revision = self.state.applied();
            view.begin_at(revision);
            revision
        })
    }
}
