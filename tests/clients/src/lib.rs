//! No code: the tests beside it.
