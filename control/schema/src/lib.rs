//! The one schema model and what it drives
