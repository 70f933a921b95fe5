//! Where a control socket becomes one that answers, before it has its name.
//!
//! The problem: from `bind` to `listen` a socket has a name and refuses whoever comes, and so does one whose process is
//! dead. `wg` removes what refuses it. So sockets are bound in a directory beside their names and moved from there once
//! they listen. `wg` looks at names that end in `.sock` and at no directories in between (`ipc-uapi-unix.h`).
//!
//! Invariants: whoever holds the directory's lock is alone in it, so what he finds there a killed process has left; moving
//! replaces nothing; nobody but root can reach what has not got its mode yet.
//!
//! Deliberately absent: the directory's removal. Others may wait for its lock.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

/// The directory's name. Within it sockets have the names that they are to get: `/proc/net/unix` and `ss` go on showing
/// where a socket was bound.
const NAME: &str = ".netfwd";
/// How long others may be busy in there; one start takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const RETRY: Duration = Duration::from_millis(5);

/// The directory, locked.
#[derive(Debug)]
pub(super) struct Staging {
    directory: PathBuf,
    _lock: File,
}

impl Staging {
    /// The one beside the sockets in `directory`, as soon as nobody else is in it.
    pub(super) fn enter(directory: &Path) -> io::Result<Self> {
        Self::enter_within(directory, PATIENCE)
    }

    fn enter_within(directory: &Path, patience: Duration) -> io::Result<Self> {
        let directory = directory.join(NAME);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let lock = File::open(&directory)?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { directory, _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(RETRY),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked(&directory)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A socket that listens, and where it is for now.
    pub(super) fn listen(&self, name: &str) -> io::Result<(UnixListener, PathBuf)> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok((listener, path))
    }

    /// Moves a socket from in here to where nothing is.
    pub(super) fn publish(self, socket: &Path, path: &Path) -> io::Result<()> {
        renameat_with(CWD, socket, CWD, path, RenameFlags::NOREPLACE).map_err(|error| {
            // The next start would remove it, too.
            let _ = fs::remove_file(socket);
            error.into()
        })
    }
}

fn locked(directory: &Path) -> io::Error {
    let text = format!("another process does not let go of {}", directory.display());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nobody_waits_for_ever() {
        let directory = std::env::temp_dir().join(format!("netfwd-staging-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let first = Staging::enter(&directory).expect("nobody is there");
        let error = Staging::enter_within(&directory, 4 * RETRY).expect_err("somebody is there");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Staging::enter(&directory).map(drop));
            sleep(RETRY);
            drop(first);
            second.join().expect("no panic").expect("its turn");
        });
        fs::remove_dir_all(&directory).expect("ours");
    }
}
