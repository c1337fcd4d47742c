//! What is left when the process or the power goes: a child of this very binary writes and reports
//! what was acknowledged; then it, or its disk, is cut off, and what is left must hold all of that,
//! and nothing by halves.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails by panicking, as the test does")]

mod full_disk;
mod kill;
mod power_cut;
mod verify;
mod writer;
