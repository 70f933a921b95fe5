//! Network namespaces for tests: each test's thread moves into one that ends with the thread.
//!
//! Nothing is named, so nothing can be left behind: an unnamed namespace, and every device in it, is gone once no thread
//! and no descriptor refers to it, whatever became of the test.

#![allow(dead_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Whether the test may run. Without root it fails loudly, unless NETFWD_SKIP_ROOT_TESTS=1 asks for a (printed) skip.
pub fn have_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let skip = std::env::var("NETFWD_SKIP_ROOT_TESTS").is_ok_and(|value| value == "1");
    assert!(skip, "{test} needs root: run as root, or set NETFWD_SKIP_ROOT_TESTS=1 to skip it knowingly");
    println!("SKIPPED for want of root: {test}");
    false
}

/// Runs `test` in a fresh network namespace with `lo` up, on a thread of its own.
pub fn in_new_namespace(name: &str, test: impl FnOnce() + Send) {
    if !have_root(name) {
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter_new();
            test();
        });
    });
}

fn enter_new() {
    // SAFETY: only the calling thread changes its namespace, and it was made for that.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
    ip("link set lo up");
}

/// A second namespace, entered for single actions.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        let maker = std::thread::spawn(move || {
            enter_new();
            sender.send(current()).expect("the receiver waits");
        });
        maker.join().expect("the namespace is made");
        receiver.recv().expect("the namespace was sent")
    }

    /// Runs `action` on a thread in this namespace.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
                action()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What `ip` takes as a namespace.
    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// The namespace of the calling thread.
pub fn current() -> Namespace {
    Namespace(File::open("/proc/thread-self/ns/net").expect("/proc is mounted"))
}

/// Runs `ip` with blank-separated arguments in the calling thread's namespace.
pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program in the calling thread's namespace; its failure fails the test.
pub fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a sysctl of the calling thread's namespace.
pub fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}
