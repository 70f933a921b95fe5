//! A TOML document whose every fault has a line.
//!
//! An operator who mistypes a key must read where, which key, and what would be right: one line each, all of them at
//! once. Derived deserializers stop at the first fault and name types of this program, so a section is read key by key
//! here, over toml's spanned document.
//!
//! Invariants: a key that nobody asked for is a fault; a fault never stops the reading of what follows it.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with one value, and where.
#[derive(Debug)]
pub struct Fault {
    /// Bytes of the source.
    pub at: Range<usize>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A value or what is wrong with it.
pub type Parsed<T> = Result<T, Fault>;

/// One line of the report: a key with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// From 1.
    pub line: usize,
    /// Dotted path, `tunnel.vni`; empty for a fault of syntax.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All faults of one document.
#[derive(Debug)]
pub struct Report {
    /// Where lines end. A document with ten thousand peers is asked for some ten thousand lines, right as it may be.
    line_ends: Vec<usize>,
    errors: RefCell<Vec<KeyError>>,
}

impl Report {
    /// An empty report on `source`.
    pub fn new(source: &str) -> Self {
        let line_ends = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { line_ends, errors: RefCell::default() }
    }

    /// The line, from 1, of a byte of the source.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.line_ends.partition_point(|end| *end < offset)
    }

    /// Adds a fault at a byte of the source. What it quotes may hold line ends or worse: it stays one printable line.
    pub fn fault(&self, offset: usize, key: impl Into<String>, message: impl Into<String>) {
        let error =
            KeyError { line: self.line(offset), key: printable(key.into()), message: printable(message.into()) };
        self.errors.borrow_mut().push(error);
    }

    /// All faults, by line.
    pub fn into_errors(self) -> Vec<KeyError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        errors
    }
}

/// A text whose control characters are written as escapes.
fn printable(text: String) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => printable.extend(c.escape_debug()),
            false => printable.push(c),
        }
    }
    printable
}

/// One table of the document, read key by key.
#[derive(Debug)]
pub struct Section<'a> {
    report: &'a Report,
    path: String,
    at: usize,
    table: &'a DeTable<'a>,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The document itself: keys have no prefix.
    pub fn root(report: &'a Report, table: &'a DeTable<'a>) -> Self {
        Self { report, path: String::new(), at: 0, table, asked: Vec::new() }
    }

    /// Dotted path of a key in this section.
    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn lookup(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.push(key);
        self.table.get(key)
    }

    /// Whether the key is present.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the key is absent, or a list of nothing.
    pub fn lacks(&self, key: &str) -> bool {
        self.table.get(key).is_none_or(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()))
    }

    /// Where faults of `key` are reported: its value, or the section if it is absent.
    fn offset_of(&self, key: &str) -> usize {
        self.table.get(key).map_or(self.at, |value| value.span().start)
    }

    /// The line of `key`, or of the section if it is absent.
    pub fn line_of(&self, key: &str) -> usize {
        self.report.line(self.offset_of(key))
    }

    /// Reports a fault of `key`.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        self.report.fault(self.offset_of(key), self.key_path(key), message);
    }

    /// Reports a fault at a place inside the value of `key`.
    pub fn fault_at(&self, at: Range<usize>, key: &str, message: impl Into<String>) {
        self.report.fault(at.start, self.key_path(key), message);
    }

    /// The value of `key`, if it is present and right; a fault is reported.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&'a Spanned<DeValue<'a>>) -> Parsed<T>,
    ) -> Option<T> {
        match parse(self.lookup(key)?) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault_at(fault.at, key, fault.message);
                None
            }
        }
    }

    /// The value of `key`; if it is absent, `what` says what is missing.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        what: &str,
        parse: impl FnOnce(&'a Spanned<DeValue<'a>>) -> Parsed<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.fault(key, format!("missing: {what}"));
        }
        self.optional(key, parse)
    }

    /// Refuses those of `keys` that are present, whatever they say.
    pub fn refuse(&mut self, keys: &[&'static str], why: &str) {
        for key in keys.iter().filter(|key| self.table.contains_key(**key)) {
            self.asked.push(key);
            self.fault(key, why);
        }
    }

    /// The subtable `[key]`, if present.
    pub fn table(&mut self, key: &'static str) -> Option<Section<'a>> {
        let value = self.lookup(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let found = value.get_ref().type_str();
            self.fault(key, format!("expected a table [{key}], found {found}"));
            return None;
        };
        Some(self.subsection(key, value.span().start, table))
    }

    /// The subtables `[[key]]`.
    pub fn tables(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.lookup(key) else { return Vec::new() };
        let path = self.key_path(key);
        let tables: Option<Vec<_>> = value
            .get_ref()
            .as_array()
            .and_then(|array| array.iter().map(|item| Some((item.span().start, item.get_ref().as_table()?))).collect());
        let Some(tables) = tables else {
            self.fault(key, format!("expected [[{path}]] with double brackets: there may be several"));
            return Vec::new();
        };
        tables.into_iter().map(|(at, table)| self.subsection(key, at, table)).collect()
    }

    fn subsection(&self, key: &str, at: usize, table: &'a DeTable<'a>) -> Section<'a> {
        Section { report: self.report, path: self.key_path(key), at, table, asked: Vec::new() }
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        for key in self.table.keys().filter(|key| !self.asked.contains(&key.get_ref().as_ref())) {
            let known = self.asked.join(", ");
            let message = format!("unknown key; known here: {known}");
            self.report.fault(key.span().start, self.key_path(key.get_ref()), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_line_ends_with_its_end() {
        for source in ["", "\n", "a\n\nb\r\nc", "a\nb\n"] {
            let report = Report::new(source);
            for offset in 0..source.len() + 3 {
                let before = &source[..offset.min(source.len())];
                assert_eq!(report.line(offset), 1 + before.matches('\n').count(), "{source:?} at {offset}");
            }
        }
    }

    #[test]
    fn a_line_is_told_without_reading_all_before_it_again() {
        let source = "x\n".repeat(1_000_000);
        let report = Report::new(&source);
        let start = Instant::now();
        assert!((0..20_000).all(|n| report.line(source.len() - n) > 900_000));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}
