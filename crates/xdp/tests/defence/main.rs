//! The program's defence of services and its tarpit, frame by frame.

mod flood;
mod lists;
mod network;
mod packet;
mod plane;
mod rate;
mod syn;
mod tarpit;
