//! What all components of a worker share: its timers, where descriptors are registered, the budget of descriptors, the ring.

pub mod descriptors;
pub(crate) mod registry;
pub(crate) mod ring;
pub(crate) mod timers;
