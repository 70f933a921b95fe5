//! Preflight: whether this machine can do what the configuration says, before anything is made.
