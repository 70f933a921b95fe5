//! Many peers.
