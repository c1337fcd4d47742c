//! Assembles the control plane
