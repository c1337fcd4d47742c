//! HTTP routing from Ingress objects
