//! Secrets stay in memory: a core dump is a file with the private keys of everybody in it.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::warn;

/// No core dumps of this process from here on, to files as to handlers; nobody but root may look into it.
pub fn keep_out_of_core_dumps() {
    let never = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, never);
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable).and(limited) {
        warn!("a core dump of this process would contain keys: {error}");
    }
}
