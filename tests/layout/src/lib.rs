//! Arrows between crates, and the paths that documents name
