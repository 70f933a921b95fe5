//! A small load tool on plain sockets.
