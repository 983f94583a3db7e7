//! What a pool does with what clients have of its servers.

/// What becomes of the connections, requests and flows of a server that a check takes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// They go on as long as they can.
    #[default]
    Keep,
    /// They end at once.
    Close,
}

impl OnDown {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Close];

    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Close => "close",
        }
    }
}
