//! Whole clusters: real binaries, real kubectl
