//! Pull, verify and store images
