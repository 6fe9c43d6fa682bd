//! What the screen shows.

use std::sync::{Arc, Mutex};

use trapline_display::{Frame, TextScreen, Vga};

use crate::chassis::lock;

/// A machine's screen: to look at it, also while the machine runs. Clones are the same.
#[derive(Clone)]
pub struct Screen(pub(super) Arc<Mutex<Vga>>);

impl Screen {
    /// What it says; `None` while it shows graphics.
    pub fn text(&self) -> Option<TextScreen> {
        lock(&self.0).text()
    }

    /// What it looks like.
    pub fn picture(&self) -> Frame {
        lock(&self.0).render()
    }
}
