//! What a connected node is told, and what it may say
