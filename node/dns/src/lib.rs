//! DNS answers from Services and EndpointSlices
