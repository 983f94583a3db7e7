//! pen, and the programs that come with it.

mod command;
mod line;
mod lists;
pub(super) mod mergelogs;
pub(super) mod penlog;
pub(super) mod penlogd;
mod spec;
mod state;
mod write;
