//! Assembles the node
