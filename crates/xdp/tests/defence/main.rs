//! The program's defence of services and its tarpit, frame by frame.

mod lists;
mod packet;
mod plane;
mod rate;
mod syn;
mod tarpit;
