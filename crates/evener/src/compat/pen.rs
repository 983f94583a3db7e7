//! pen, and the programs that come with it.

mod command;
mod control;
mod facts;
mod front;
mod line;
mod lists;
pub(super) mod mergelogs;
mod page;
pub(super) mod penctl;
pub(super) mod penlog;
pub(super) mod penlogd;
pub(super) mod run;
mod spec;
mod state;
mod write;
