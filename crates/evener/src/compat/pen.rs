//! pen, and the programs that come with it.

pub(super) mod mergelogs;
pub(super) mod penlog;
pub(super) mod penlogd;
