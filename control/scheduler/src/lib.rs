//! Binds pods to nodes: filter, score, bind
