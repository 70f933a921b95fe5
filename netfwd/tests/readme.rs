//! The README's tables of reasons come from the enums: a reason cannot exist without being documented.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use netfwd_common::reason::{DropReason, FlushReason, PassReason};

const START: &str = "test readme` -->\n";
const END: &str = "<!-- end of reasons -->";

fn table(title: &str, rows: impl Iterator<Item = (&'static str, &'static str)>) -> String {
    let mut text = format!("\n{title}\n\n| reason | meaning |\n|---|---|\n");
    for (label, meaning) in rows {
        writeln!(text, "| `{label}` | {} |", meaning.trim()).unwrap();
    }
    text
}

fn expected() -> String {
    let drops = DropReason::ALL.iter().map(|reason| (reason.as_str(), reason.describe()));
    let flushes = FlushReason::ALL.iter().map(|reason| (reason.as_str(), reason.describe()));
    let passes = PassReason::ALL.iter().map(|reason| (reason.as_str(), reason.describe()));
    let mut text = table("`netfwd_drops_total`: why a packet was dropped.", drops);
    text += &table("`netfwd_gro_flush_total`: why a packet began a frame instead of joining one.", flushes);
    text += &table("`netfwd_xdp_passes_total`: why XDP left a packet to the kernel.", passes);
    text + "\n"
}

#[test]
fn the_readme_lists_every_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let start = readme.find(START).unwrap() + START.len();
    let end = readme.find(END).unwrap();
    if std::env::var_os("NETFWD_BLESS").is_some() {
        fs::write(&path, format!("{}{}{}", &readme[..start], expected(), &readme[end..])).unwrap();
        return;
    }
    assert_eq!(&readme[start..end], expected(), "run NETFWD_BLESS=1 cargo test -p netfwd --test readme");
}
