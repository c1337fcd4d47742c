//! Pod addresses and service routing
