//! Debian's pen and Evener's, compared: the same command line, the same commands by Debian's penctl, the same traffic.
//! The differences are listed in `differences.rs` and in `docs/migrate-from-pen.md`.

mod access;
mod choosing;
mod commands;
mod differences;
mod programs;
mod running;
mod traffic;
