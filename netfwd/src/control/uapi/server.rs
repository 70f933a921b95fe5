//! The socket itself: `/var/run/wireguard/NAME.sock`, and the connections to it.
//!
//! Invariants: whoever may connect may read private keys, so directory and socket are root's alone from the first moment;
//! whoever finds the socket finds somebody who listens; a socket that somebody listens on is never taken away from him, one
//! that a dead process left behind is; what is removed at the end is our own socket and not a successor's. Connections are
//! bounded, and whoever holds one without using it makes room for who comes after him.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};
use zeroize::{Zeroize, Zeroizing};

use super::request::{MAX_LINE, Reader, Refusal, Request, Unintelligible};
use super::staging::Staging;
use super::{Configurable, response};

/// Where `wg` looks for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may neither go on with a request nor take an answer. Between requests he may be silent as he likes, while nobody
/// waits: some keep a connection and ask once in a minute.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long he may be silent while others wait.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes read at a time; a line always fits.
const CHUNK: usize = 4 * MAX_LINE;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{}: another process serves a WireGuard device of that name", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something that is no socket.
    #[error("{}: is no socket: remove it", .0.display())]
    NoSocket(PathBuf),
    /// A system call failed.
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    System(PathBuf, io::Error),
}

/// The socket in the file system, removed at the end.
#[derive(Debug)]
pub struct SocketFile(Place);

/// Where the socket was made, and how to tell it from another.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Makes the control socket of the device `name`.
    pub fn create(name: &str) -> Result<(Self, StdListener), SocketError> {
        Self::create_in(Path::new(DIRECTORY), name)
    }

    /// Makes it in another directory.
    pub fn create_in(directory: &Path, name: &str) -> Result<(Self, StdListener), SocketError> {
        let path = path_in(directory, name);
        let system = |error| SocketError::System(path.clone(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(system)?;
        let staging = Staging::enter(directory).map_err(system)?;
        remove_stale(&path)?;
        let (listener, staged) = staging.listen(&file_name(name)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let identity = identity(&staged).map_err(system)?;
        staging.publish(&staged, &path).map_err(|error| match error.kind() {
            // Somebody was faster.
            io::ErrorKind::AlreadyExists => SocketError::InUse(path.clone()),
            _ => SocketError::System(path.clone(), error),
        })?;
        Ok((Self(Place { path, identity }), listener))
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.0
    }
}

impl Place {
    /// Whether somebody has removed or replaced it, which asks the device to go.
    pub fn is_gone(&self) -> bool {
        identity(&self.path).map_or(true, |identity| identity != self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Self(place) = self;
        if !place.is_gone()
            && let Err(error) = fs::remove_file(&place.path)
        {
            info!("{} stays behind: {error}", place.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// What would keep the device `name` from having a control socket, as far as can be told beforehand: sockets are in one
/// directory for all network namespaces.
pub fn obstacle(name: &str) -> Option<SocketError> {
    let path = path_in(Path::new(DIRECTORY), name);
    let metadata = fs::symlink_metadata(&path).ok()?;
    if !metadata.file_type().is_socket() {
        return Some(SocketError::NoSocket(path));
    }
    StdStream::connect(&path).ok().map(|_| SocketError::InUse(path))
}

fn path_in(directory: &Path, name: &str) -> PathBuf {
    directory.join(file_name(name))
}

fn file_name(name: &str) -> String {
    format!("{name}.sock")
}

/// Removes the socket of a process that is no more. `wg` does so, too, and may be faster.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let gone_is_good = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SocketError::System(path.into(), error)),
        _ => Ok(()),
    };
    match fs::symlink_metadata(path) {
        Err(error) => return gone_is_good(Err(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NoSocket(path.into())),
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.into())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => gone_is_good(fs::remove_file(path)),
        Err(error) => gone_is_good(Err(error)),
    }
}

/// Serves a device until the task is dropped.
pub async fn serve<D: Configurable + 'static>(listener: StdListener, name: String, device: Arc<D>) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let crowd = Arc::new(Crowd::new());
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: it may pass.
                info!("control socket of {name}: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // The semaphore is never closed.
        let Some(place) = crowd.enter().await else { return Ok(()) };
        let (name, device, crowd) = (name.clone(), device.clone(), crowd.clone());
        tokio::spawn(async move {
            if let Err(error) = Connection::new(stream, crowd).serve(&name, device.as_ref()).await {
                debug!("control socket of {name}: {error}");
            }
            drop(place);
        });
    }
}

/// The connections that there may be.
struct Crowd {
    places: Arc<Semaphore>,
    /// Somebody waits for a place. Who has waited longest to hear of it hears first.
    is_full: Notify,
}

impl Crowd {
    fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), is_full: Notify::new() }
    }

    /// A place, as soon as there is one.
    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if self.places.available_permits() == 0 {
            self.is_full.notify_one();
        }
        self.places.clone().acquire_owned().await.ok()
    }

    /// Comes when a client who has been silent since the call is to make room.
    async fn wants_room(&self) {
        sleep(GRACE).await;
        self.is_full.notified().await;
    }
}

struct Connection {
    stream: UnixStream,
    crowd: Arc<Crowd>,
    reader: Reader,
    buffer: Zeroizing<Vec<u8>>,
    filled: usize,
    /// Inside a line that is too long, up to its end.
    skipping: bool,
    patience: Duration,
}

impl Connection {
    fn new(stream: UnixStream, crowd: Arc<Crowd>) -> Self {
        let buffer = Zeroizing::new(vec![0; CHUNK]);
        let reader = Reader::new(scope_of);
        Self { stream, crowd, reader, buffer, filled: 0, skipping: false, patience: PATIENCE }
    }

    async fn serve<D: Configurable>(mut self, name: &str, device: &D) -> io::Result<()> {
        loop {
            let is_idle = self.filled == 0 && self.reader.is_idle();
            let patience = if is_idle { Duration::MAX } else { self.patience };
            let read = tokio::select! {
                read = timeout(patience, self.stream.read(&mut self.buffer[self.filled..])) => read??,
                () = self.crowd.wants_room() => return Err(io::Error::other("silent while others wait")),
            };
            if read == 0 {
                let cut = self.filled > 0 || self.skipping;
                if let Some(request) = self.reader.end(cut) {
                    self.answer(name, device, request).await?;
                }
                return Ok(());
            }
            self.filled += read;
            let mut start = 0;
            while let Some(length) = self.buffer[start..self.filled].iter().position(|&byte| byte == b'\n') {
                let line = start..start + length;
                start = line.end + 1;
                match self.take_line(line) {
                    Ok(None) => {}
                    Ok(Some(request)) => self.answer(name, device, request).await?,
                    Err(Unintelligible) => {
                        return Err(io::Error::other("an operation that is neither get=1 nor set=1"));
                    }
                }
            }
            if self.keep_rest(start).is_err() {
                return Err(io::Error::other("a line that is too long"));
            }
        }
    }

    fn take_line(&mut self, line: std::ops::Range<usize>) -> Result<Option<Result<Request, Refusal>>, Unintelligible> {
        if std::mem::take(&mut self.skipping) {
            return Ok(None);
        }
        if line.len() >= MAX_LINE {
            return self.reader.long_line().map(|()| None);
        }
        self.reader.line(&self.buffer[line])
    }

    /// Moves the beginning of a line to the front, and forgets what was read.
    fn keep_rest(&mut self, start: usize) -> Result<(), Unintelligible> {
        let rest = self.filled - start;
        self.buffer.copy_within(start..self.filled, 0);
        self.buffer[rest..].zeroize();
        self.filled = rest;
        if rest >= MAX_LINE {
            if !self.skipping {
                self.reader.long_line()?;
            }
            self.skipping = true;
            self.filled = 0;
        }
        Ok(())
    }

    async fn answer<D: Configurable>(
        &mut self,
        name: &str,
        device: &D,
        request: Result<Request, Refusal>,
    ) -> io::Result<()> {
        let answer = match request {
            Ok(Request::Get) => response::device(&device.status()),
            Ok(Request::Set(update)) => {
                let errno = device.apply(&update).await.map_or_else(|error| failed(name, &error), |()| 0);
                response::status_line(errno).into()
            }
            Err(refusal) => {
                info!("control socket of {name}: a request was refused: {refusal}");
                response::status_line(refusal.errno).into()
            }
        };
        timeout(self.patience, self.stream.write_all(answer.as_bytes())).await?
    }
}

fn failed(name: &str, error: &io::Error) -> i32 {
    info!("control socket of {name}: a change failed: {error}");
    error.raw_os_error().filter(|errno| *errno > 0).unwrap_or(libc::EIO)
}

/// The index of an interface by its name or, as `getnameinfo` writes it too, by its number.
fn scope_of(interface: &str) -> Option<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET6, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(socket, interface).ok()
}

#[cfg(test)]
mod tests;
