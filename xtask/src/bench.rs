//! `cargo xtask bench`.

use anyhow::Result;

#[derive(clap::Args)]
pub struct Arguments {}

pub fn perform(_arguments: &Arguments) -> Result<()> {
    Ok(())
}
