//! Logs: one plain line each on stderr, where systemd and terminals want them.
//!
//! Crates that use `log` (aya-log's lines from XDP among them) are heard too. The netlink crates remark on every
//! attribute of a newer kernel, at every scrape, so only their errors are wanted; aya tells of every relocation, in many
//! lines. Neither says more than was asked for.
//!
//! A line that cannot be written, to a full disk or a pipe that nobody reads any more, is lost without a word: the logger would
//! complain on stderr, which is just what does not work, and panic, in a worker too.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Sets the logger up; `RUST_LOG` wins over `level`. A logger that is already there stays.
pub fn start(level: LevelFilter) {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|directives| !directives.is_empty());
    let filter = EnvFilter::builder().parse_lossy(directives.unwrap_or_else(|| directives_for(level)));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second logger in one process is a test's, and the first serves it too.
    let _ = lines.with_ansi(terminal).with_target(false).log_internal_errors(false).try_init();
}

fn directives_for(level: LevelFilter) -> String {
    let (errors, steps) = (level.min(LevelFilter::ERROR), level.min(LevelFilter::INFO));
    format!("{level},netlink_packet_route={errors},netlink_proto={errors},aya={steps},aya_obj={steps}")
}

/// So many of something, as a person would say it.
pub struct Count(pub usize, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, noun) = self;
        write!(f, "{count} {noun}{}", if *count == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_louder_than_was_asked_for() {
        let expected = "off,netlink_packet_route=off,netlink_proto=off,aya=off,aya_obj=off";
        assert_eq!(directives_for(LevelFilter::OFF), expected);
        let expected = "debug,netlink_packet_route=error,netlink_proto=error,aya=info,aya_obj=info";
        assert_eq!(directives_for(LevelFilter::DEBUG), expected);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|n| Count(n, "queue").to_string()), ["0 queues", "1 queue", "2 queues"]);
    }
}
