//! Controllers: one file each, one driver
